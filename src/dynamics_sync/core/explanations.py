"""Our own words for an error code: what it means and what to do. Messages of others are never shown (R16)."""

from dynamics_sync.core.operation import DYNAMICS, PORTAL

_OF_DYNAMICS = {
    "0x80048d19": "Dynamics could not read the payload: a column does not exist there, or a value has the wrong type. "
    "Compare the mapping with the table in Dynamics.",
    "0x80044331": "A text is longer than its column in Dynamics allows. Shorten it, or widen the column.",
    "0x80040203": "Dynamics found an argument invalid. Compare the record's values with the table's rules.",
    "0x80040265": "A plug-in in Dynamics refused the record. Ask whoever owns the plug-in.",
    "0x80040216": "Dynamics met an unexpected error with this record.",
    "0x80040220": "The application user lacks a privilege. Give its security role access to the table.",
    "0x80040217": "A record that this one refers to does not exist in Dynamics.",
    "0x80060891": "No record in Dynamics has that key.",
    "0x8006088a": "Dynamics does not know that entity set. Check `entity_set` in the mapping.",
    "0x80060882": "The record was changed in Dynamics at the same moment.",
    "0x80040237": "A record with the same key was created at the same moment.",
    "0x80060892": "Another record in Dynamics already has that alternate key.",
    "0x80040333": "A duplicate-detection rule in Dynamics matched another record.",
    "0x80072321": "Dynamics' limit on execution time was reached.",
    "0x80072322": "Dynamics' limit on the number of requests was reached.",
    "0x80072326": "Dynamics' limit on concurrent requests was reached.",
    "0x80044150": "Dynamics' database reported a deadlock.",
    "0x80044151": "Dynamics' database timed out.",
    "http_400": "Dynamics refused the record as malformed.",
    "http_401": "Dynamics did not accept the access token, even a new one. Check that the app registration is an "
    "application user of this environment.",
    "http_403": "The application user lacks a privilege. Give its security role access to the table.",
    "http_404": "Dynamics does not know the address. Check `entity_set` and `alternate_key` in the mapping.",
    "http_412": "The record was changed in Dynamics at the same moment.",
    "http_413": "The record is too large for Dynamics.",
    "http_429": "Dynamics asked us to slow down.",
    "contract_mismatch": "Something answered that is not Dataverse: a log-in page, a proxy or another service. Check "
    "the Dynamics address, and that nothing stands in between.",
    "foreign_link": "The answer leads on to another host than that of the Dynamics address in the settings, and the "
    "access token must not go there. Set the address that Dynamics itself uses.",
    "page_too_large": "A page of records is longer than 64 MB, because of long texts. Leave these out of the mapping, "
    "or switch reconciliation off.",
    "timeout": "Dynamics did not answer in time. It may or may not have stored the record.",
    "connection_refused": "Dynamics refused the connection.",
    "connection_reset": "The connection to Dynamics was lost. It may or may not have stored the record.",
    "dns": "The name of the Dynamics host could not be resolved.",
    "tls": "The certificate of the Dynamics host is not trusted.",
}

_OF_PORTAL = {
    "contract_mismatch": "The portal answered otherwise than its contract says; `queue show` says where. If the "
    "portal has changed, declare the new version of the contract in a file (docs/portal.md), name it in "
    "DYNAMICS_SYNC_PORTAL_CONTRACT, start `dynamics-sync run` again and replay. If it is a log-in page or a proxy that "
    "answers, check DYNAMICS_SYNC_PORTAL_URL.",
    "portal.request": "The record does not fit what the portal's contract says of a request; `queue show` says where. "
    "Correct the record, or declare the contract as it is by now, and replay.",
    "http_401": "The portal did not accept the signature. Check DYNAMICS_SYNC_PORTAL_SECRET, and that the clocks of "
    "both machines agree within five minutes; then replay.",
    "http_403": "The portal refuses us, or something in between does. Ask whoever runs the portal.",
    "http_404": "The portal does not know the address. Check DYNAMICS_SYNC_PORTAL_URL and the contract's `path`.",
    "http_413": "The record is too large for the portal.",
    "http_429": "The portal asked us to slow down.",
    "timeout": "The portal did not answer in time. It may or may not have stored the record.",
    "connection_refused": "The portal refused the connection.",
    "connection_reset": "The connection to the portal was lost. It may or may not have stored the record.",
    "dns": "The name of the portal's host could not be resolved. Check DYNAMICS_SYNC_PORTAL_URL.",
    "tls": "The certificate of the portal's host is not trusted. Name its authority in DYNAMICS_SYNC_CA_FILE.",
}

_OF_ALL = {
    "internal_error": "dynamics-sync met an error of its own with this record. Look for `sync.interrupted` in the log.",
    "circuit_open": "The circuit was open, because the other side was not well, and nothing was sent.",
    "operator": "A person opened the circuit; `dynamics_sync.audit` says who and why.",
    "prepare_timeout": "Reading the record, or getting an access token, took too long. Look at the database's and the "
    "identity provider's health.",
    "token": "No access token could be had. Check tenant, client id and client secret.",
    "database.unreadable": "The record's table cannot be read as the mapping says: the table or a column is gone, or "
    "service_role may not read it. `dynamics-sync run` names it when it starts; put it right and replay.",
    "database.unreadable_value": "A value of the record cannot be read, such as the date `infinity`, or its key no "
    "longer has the type of the key's column. Correct the record and replay.",
    "mapping.unknown_table": "The table is watched, but the mapping, or the portal's contract, does not name it: add "
    "it there.",
    "mapping.unknown_choice": "A text has no number in the mapping's choices. Add it to the mapping.",
    "mapping.forbidden_key": "The key holds a character that Dataverse cannot take in a key: / < > * % & : \\ ? +",
    "mapping.wrong_type": "A value has another type than the mapping says.",
    "mapping.too_precise": "A number has more digits than surely arrive unchanged (about 15). Round it.",
    "inbox.unrecognised": "No version of the webhook contract that this program knows understands the message. It is "
    "kept as it came: upgrade, then `dynamics-sync inbox replay`.",
    "inbox.unmapped_table": "The table is in no mapping. Unregister the step in Dynamics, or map the table.",
    "inbox.own_change": "The change was our own, coming back.",
    "inbox.no_such_row": "There is no row with that key here.",
    "inbox.unknown_record": "A record was deleted in Dynamics of which no key is known here.",
    "inbox.record_gone": "The record was no longer in Dynamics when it was looked at.",
    "inbox.without_key": "The record has no alternate key in Dynamics: it is none of ours.",
    "inbox.nothing_mapped": "The change touches no column of the mapping. Filtering attributes on the step spare such "
    "messages.",
    "inbox.unknown_choice": "Dynamics chose a number that has no text in the mapping's choices. Add it to the mapping, "
    "and replay.",
    "inbox.wrong_type": "A value from Dynamics does not fit the column's type. Compare the mapping with the table in "
    "Dynamics; correct it, and replay.",
    "inbox.lookup_by_key": "A lookup that the mapping writes by alternate key was changed in Dynamics. Which row it "
    "means cannot be told by its id. Make the change here, by hand.",
    "inbox.may_not_write": "service_role may not change the row. Grant it update on the mapped columns, and replay.",
    "inbox.refused_by_database": "A rule of the table, such as a check, a reference or a trigger, forbids the value "
    "that Dynamics has. Put one of them right, and replay.",
    "inbox.reading_refused": "Dynamics did not let the record be read, or the mapping names what is not there. Give "
    "the application user's security role leave to read the table, or correct the mapping, and replay.",
}


def explain(code: str, target: str = DYNAMICS) -> str:
    """One or two sentences for a person who reads the queue, or looks at the circuit, of a target."""
    code = code.lower()
    is_portal = target == PORTAL
    known = (_OF_PORTAL if is_portal else _OF_DYNAMICS).get(code) or _OF_ALL.get(code)
    if known is not None:
        return known
    if code.startswith("http_5"):
        return f"{'The portal' if is_portal else 'Dynamics'} had a fault of its own."
    if is_portal:
        return "The portal refused the record. Ask whoever runs it, and replay."
    return "Dynamics refused the record. Look the code up in Microsoft's list of Dataverse error codes."
