import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil.core import udi
from vigil.errors import Reason, Refused

FDA = "(01)51022222233336(11)141231(17)150707(10)A213B1(21)1234"  # FDA, UDI formats by issuing agency
FHIR = "(01)09504000059118(17)141120(10)7654321D(21)10987654d321"  # FHIR US Core
RAW = "0109504000059118" + "17141120" + "107654321D\x1d" + "2110987654d321"


def test_the_fda_example() -> None:
    read = udi.parse(FDA)
    assert read.key == ("GS1", "51022222233336", "1234")
    assert (read.lot, read.manufactured, read.expires) == ("A213B1", "141231", "150707")
    assert read.canonical == "(01)51022222233336(21)1234"
    assert read.carrier == FDA


@pytest.mark.parametrize(
    "carrier",
    [FHIR, RAW, "]d2" + RAW, "]C1" + RAW, "\x1d" + RAW, RAW + "\x1d", RAW.replace("1714", "\x1d1714")],
)
def test_every_form_of_a_carrier_names_the_same_device(carrier: str) -> None:
    read = udi.parse(carrier)
    assert read.key == ("GS1", "09504000059118", "10987654d321")
    assert read.lot == "7654321D"
    assert udi.parse(read.canonical).key == read.key


def test_serials_are_case_sensitive() -> None:
    assert udi.parse(FHIR).key != udi.parse(FHIR.replace("d321", "D321")).key


def test_the_older_fhir_example_and_a_software_version() -> None:
    read = udi.parse("(01)00844588003288(17)141120(10)7654321D(21)10987654d321(8012)4.2.1")
    assert (read.di, read.software_version) == ("00844588003288", "4.2.1")
    assert udi.parse("(01)00844588003288(17)141100(21)1").expires == "141100"  # day 00: the month's last


@pytest.mark.parametrize(
    ("carrier", "word"),
    [
        ("", "empty"),
        ("(01)09504000059118(21)" + "1" * 300, "longer"),
        ("(01)09504000059119(21)1", "check digit"),
        ("010950400005911921A", "check digit"),
        ("(01)09504000059118", "serial"),
        ("0109504000059118", "serial"),
        ("(21)1234", "device identifier"),
        ("(01)09504000059118(21)", "application identifier"),
        ("(01)9504000059118(21)1", "application identifier"),
        ("(01)09504000059118(21)" + "1" * 21, "application identifier"),
        ("(01)09504000059118(17)141320(21)1", "application identifier"),
        ("(01)09504000059118(17)140230(21)1", "application identifier"),
        ("(01)09504000059118(05)1(21)1", "application identifier"),
        ("(01)09504000059118(21)1(21)2", "twice"),
        ("(01)09504000059118(01)51022222233336(21)2", "twice"),
        ("x(01)09504000059118(21)1", "application identifier"),
        ("(01)09504000059118(21)1(oops", "every part"),
        ("(01)09504000059118(21)A(B)C", "every part"),
        ("010950400005911821A(B", "bracket"),
        ("(01)09504000059118 (21)1", "character"),
        ("(01)09504000059118(21)1\n", "character"),
        ("(01)09504000059118(21)\u0661", "character"),
        ("(01)0950400005911\u0668(21)1", "character"),
        ("(01)09504000059118\x1d(21)1", "application identifier"),
        ("]d2", "character"),
        ("]X9" + RAW, "character"),
        (RAW.replace("\x1d", ""), "application identifier"),
        ("010950400005911810LOT21SERIAL", "serial"),
        ("0109504000059118" + "21" + "1" * 20 + "10LOT", "separator"),
        ("0109504000059118" + "\x1d\x1d" + "211", "separator"),
        ("+A99912345/$$52001510X3/16D20111212/S77DE1G45-", "HIBCC"),
        ("=/A9999XYZ100T0944=,000025=A99971312345600=>014032", "ICCBBA"),
        ("&,1000000000000XYZ123", "ICCBBA"),
    ],
)
def test_everything_else_is_refused_with_its_reason(carrier: str, word: str) -> None:
    with pytest.raises(Refused) as caught:
        udi.parse(carrier)
    assert caught.value.reason is Reason.UDI_INVALID
    assert word in caught.value.refusals[0].sentence


def test_a_model_is_named_by_its_gtin() -> None:
    assert udi.parse_di("09504000059118") == "09504000059118"
    for wrong in ("09504000059119", "9504000059118", "0950400005911\u0668", "095040000591180", "", "+A123"):
        with pytest.raises(Refused) as caught:
            udi.parse_di(wrong)
        assert caught.value.reason is Reason.UDI_INVALID


characters = st.sampled_from(
    "!\"%&'*+,-./0123456789:;<=>?ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
)
texts = st.text(characters, min_size=1, max_size=20)


def with_check_digit(payload: str) -> str:
    weighted = sum(int(digit) * (3 if place % 2 == 0 else 1) for place, digit in enumerate(payload))
    return payload + str(-weighted % 10)


gtins = st.text(st.sampled_from("0123456789"), min_size=13, max_size=13).map(with_check_digit)


@settings(max_examples=150)
@given(gtins, texts, texts)
def test_readable_and_scanned_carriers_agree(gtin: str, serial: str, lot: str) -> None:
    try:
        readable = udi.parse(f"(01){gtin}(21){serial}(10){lot}")
    except Refused:
        with pytest.raises(Refused):
            udi.parse(f"01{gtin}10{lot}\x1d21{serial}")
        with pytest.raises(Refused):
            udi.parse_di(gtin)
        return
    scanned = udi.parse(f"01{gtin}10{lot}\x1d21{serial}")
    assert readable.key == scanned.key == ("GS1", gtin, serial)
    assert readable.lot == scanned.lot == lot
    assert udi.parse(readable.canonical).key == readable.key


@settings(max_examples=300)
@given(
    st.text(max_size=80)
    | st.text(st.sampled_from("()0123456789\x1dAd]C"), max_size=60)
    | st.builds(
        lambda at, piece: FHIR[:at] + piece + FHIR[at + 1 :],
        st.integers(0, len(FHIR)),
        st.text(st.sampled_from("()0123456789\x1dA "), max_size=3),
    )
    | st.lists(
        st.tuples(
            st.sampled_from(
                ["00", "01", "02", "11", "17", "21", "310", "3103", "3922", "410", "7003", "8008", "8012"]
            ),
            st.text(st.sampled_from("0123456789AB"), max_size=20),
        ),
        max_size=5,
    ).map(lambda parts: "".join(f"({ai}){value}" for ai, value in parts))
)
def test_whatever_comes_is_refused_or_keeps_its_name(carrier: str) -> None:
    try:
        read = udi.parse(carrier)
    except Refused as refusal:
        if refusal.reason is not Reason.UDI_INVALID:
            raise
        return
    assert udi.parse(read.canonical).key == read.key
    assert udi.parse_di(read.di) == read.di
