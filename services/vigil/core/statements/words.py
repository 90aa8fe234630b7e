"""The words that statements choose from: classes, states, outcomes, reasons. `bodies` gives them all to its readers."""

from enum import StrEnum


class ActionClass(StrEnum):
    """The classes of the table in COMMANDS: what an action can do decides how it fails."""

    S1 = "S1"
    R = "R"
    C = "C"
    U = "U"
    T = "T"
    D = "D"


class RiskClass(StrEnum):
    """EU MDR Annex VIII risk class of the device model."""

    I = "I"  # noqa: E741 - the regulation's word
    IIA = "IIa"
    IIB = "IIb"
    III = "III"


class Effect(StrEnum):
    """What a device does to carry out an action."""

    SET = "set"  # parameters become configuration settings of the same names
    INSTALL_BASELINE = "install-baseline"  # the artifact's settings become the configuration
    INSTALL_LIBRARY = "install-library"  # the artifact becomes the drug library
    UPDATE = "update"  # the artifact becomes the firmware of the other slot
    DIAGNOSE = "diagnose"  # readings come back in the receipt
    QUARANTINE = "quarantine"  # the management channel closes but for S1, R and recovery
    RELEASE_QUARANTINE = "release-quarantine"
    HOLD = "hold"  # staged applications and log clearing stop
    LIFT_HOLD = "lift-hold"
    ALERT = "alert"  # a local message to whoever stands there
    THERAPY = "therapy"
    CLEAR = "clear"  # destructive: factory reset, key wipe, log clear


class ParameterType(StrEnum):
    INTEGER = "integer"
    TEXT = "text"
    CHOICE = "choice"
    DIGEST = "digest"


class TherapyState(StrEnum):
    IDLE = "idle"
    DELIVERING = "delivering"
    ALARM = "alarm"
    UNKNOWN = "unknown"


class PatientState(StrEnum):
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    UNKNOWN = "unknown"


class Mode(StrEnum):
    """When an intent wants its action applied."""

    NOW = "now"
    IDLE = "idle"
    WINDOW = "window"


class Answer(StrEnum):
    ALLOW = "allow"
    REFUSE = "refuse"


class Outcome(StrEnum):
    """Outcomes of receipts. APPLIED and everything after it are final."""

    ACCEPTED = "accepted"
    STAGED = "staged"
    APPLIED = "applied"
    ABANDONED = "abandoned"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    REFUSED = "refused"


class Scope(StrEnum):
    """What a revocation names."""

    CREDENTIAL = "credential"  # certificate thumbprint, hex, or `principal/<id>` for all of a person's
    DEVICE = "device"  # device id
    BUILD = "build"  # firmware digest, hex
    BASELINE = "baseline"  # configuration or library digest, hex
    GATEWAY = "gateway"  # gateway id
    SIGNER = "signer"  # certificate thumbprint, hex


class RevocationEffect(StrEnum):
    """From the mildest to the strongest."""

    FLAG = "flag"
    NO_NEW = "no_new"
    CORRECTIVE_ONLY = "corrective_only"
    DENY = "deny"


class RevocationReason(StrEnum):
    """RFC 5280 5.3.1 names where one fits."""

    COMPROMISE = "compromise"
    LEAVER = "leaver"
    SUPERSEDED = "superseded"
    DEFECT = "defect"
    VULNERABILITY = "vulnerability"
    RECALL = "recall"
    LOST = "lost"
    TEST = "test"


class TrustTier(StrEnum):
    """AR4SI tiers."""

    NONE = "none"
    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"


class EvidenceBasis(StrEnum):
    ATTESTED = "attested"
    SELF_REPORTED = "self-reported"
    MANUAL = "manual"


class BaselineKind(StrEnum):
    CONFIGURATION = "configuration"
    DRUG_LIBRARY = "drug-library"


class HoldAction(StrEnum):
    PLACE = "place"
    LIFT = "lift"
