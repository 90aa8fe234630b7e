"""The refusals that the registry makes in more than one place, each with its sentence."""

from vigil.errors import Reason, Refused, refused


def invalid(field: str, sentence: str, **values: str) -> Refused:
    """Make FIELD_INVALID for one field."""
    return refused(
        Reason.FIELD_INVALID, f"{field} is not accepted: {sentence}.", who="caller", field=field, **values
    )


def conflict(sentence: str, *, lifted_by: str = "", who: str = "") -> Refused:
    """Make STATE_CONFLICT."""
    return refused(Reason.STATE_CONFLICT, sentence, lifted_by=lifted_by, who=who)


def exists(what: str, name: str) -> Refused:
    """Make RESOURCE_EXISTS."""
    return refused(
        Reason.RESOURCE_EXISTS, f"There is a {what} {name} already.", lifted_by="another id", who="caller"
    )


def second_person(sentence: str, who: str) -> Refused:
    """Make SECOND_PERSON_REQUIRED."""
    return refused(Reason.SECOND_PERSON_REQUIRED, sentence, lifted_by="a second person", who=who)


def voucher_invalid(sentence: str) -> Refused:
    """Make VOUCHER_INVALID."""
    return refused(
        Reason.VOUCHER_INVALID,
        f"The voucher is not accepted: {sentence}.",
        lifted_by="the voucher that the device's manufacturer signed for it",
        who="the manufacturer",
    )


def not_proved(sentence: str) -> Refused:
    """Make POSSESSION_NOT_PROVED."""
    return refused(
        Reason.POSSESSION_NOT_PROVED,
        f"The device did not prove its key: {sentence}.",
        lifted_by="the device that the voucher names",
        who="the enroller",
    )


def already_enrolled(device: str) -> Refused:
    """Make DEVICE_ALREADY_ENROLLED; the device is named to those alone who may see it."""
    known = f", as {device}" if device else ""
    return refused(
        Reason.DEVICE_ALREADY_ENROLLED, f"A device with this UDI is enrolled already{known}.", device=device
    )


def key_already_enrolled() -> Refused:
    """Make KEY_ALREADY_ENROLLED: one key is one device; the same key twice is a clone."""
    return refused(Reason.KEY_ALREADY_ENROLLED, "A device with this key is enrolled already.")
