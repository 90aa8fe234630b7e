"""Who appears in the demonstration."""

from vigil.demo.people import Cast
from vigil.demo.places import CUT_SITE, HOSPITALS, HOSTILE_SITE, MAKER, OPERATOR

EVERYWHERE = -1

# name, who that is, organization, role, place of the site, whether granting it takes two administrators
_PEOPLE = (
    ("ada", "Ada, technician", HOSPITALS, "technician", 0, False),
    ("ben", "Ben, technician elsewhere", HOSPITALS, "technician", 1, False),
    ("eve", "Eve, technician who leaves", HOSPITALS, "technician", 0, False),
    ("cleo", "Cleo, biomedical lead", HOSPITALS, "approver", EVERYWHERE, True),
    ("hal", "Hal, technician behind the captured gateway", HOSPITALS, "technician", HOSTILE_SITE, False),
    ("dan", "Dan, technician behind the cut wire", HOSPITALS, "technician", CUT_SITE, False),
    ("sia", "Sia, safety officer behind the cut wire", HOSPITALS, "safety", CUT_SITE, False),
    ("sam", "Sam, safety officer", HOSPITALS, "safety", 0, False),
    ("erin", "Erin, enrolment station", HOSPITALS, "enroller", EVERYWHERE, False),
    ("bea", "Bea, pharmacist", HOSPITALS, "baseline-signer", EVERYWHERE, False),
    ("rita", "Rita, recall team", OPERATOR, "recall", EVERYWHERE, True),
    ("raj", "Raj, recall team", OPERATOR, "recall", EVERYWHERE, True),
    ("pia", "Pia, regulatory affairs", MAKER, "publisher", EVERYWHERE, True),
    ("otto", "Otto, auditor", OPERATOR, "auditor", EVERYWHERE, False),
)


def cast_of(sites: list[str]) -> list[Cast]:
    """Everybody who appears, each at their site."""
    return [
        Cast(
            name=name,
            display_name=words,
            organization=organization,
            roles=(role,),
            sites=("*",) if place == EVERYWHERE else (sites[place],),
            privileged=privileged,
        )
        for name, words, organization, role, place, privileged in _PEOPLE
    ]
