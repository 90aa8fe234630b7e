package vigil.command

# METADATA
# title: The class does not ask for an attestation
# description: |
#   R reads, and shows the attestation in its answer. The fix must reach a sick device, so U does not ask. D ends
#   what could be attested.
default attestation_waived := false

attestation_waived if input.action.class in {"R", "U", "D"}

# METADATA
# title: There is an attestation result of a kind that counts
default attestation_present := false

attestation_present if attestation_waived

attestation_present if {
	input.attestation.status in {"affirming", "warning", "contraindicated"}
	input.attestation.basis in data.vigil.config.attestation_bases
}

refusals contains {
	"reason": "ATTESTATION_MISSING",
	"rule": "vigil.command.attestation_present",
	"values": {"basis": input.attestation.basis},
} if {
	not attestation_present
}

# METADATA
# title: The result does not speak against the device
default attestation_sound := false

attestation_sound if attestation_waived

attestation_sound if input.attestation.status in {"affirming", "warning"}

refusals contains {
	"reason": "ATTESTATION_CONTRAINDICATED",
	"rule": "vigil.command.attestation_sound",
	"values": {},
} if {
	not attestation_sound
	input.attestation.status == "contraindicated"
}

# METADATA
# title: The result is not stale
default attestation_fresh := false

attestation_fresh if attestation_waived

attestation_fresh if input.attestation.stale == false

attestation_fresh if input.attestation.status == "none"

refusals contains {
	"reason": "ATTESTATION_STALE",
	"rule": "vigil.command.attestation_fresh",
	"values": {"age_ms": input.attestation.age_ms},
} if {
	not attestation_fresh
}

# METADATA
# title: The result affirms the device, or warns and the action is there to put that right
default attestation_affirmed := false

attestation_affirmed if attestation_waived

attestation_affirmed if input.attestation.status == "affirming"

attestation_affirmed if {
	input.action.class == "C"
	input.action.corrective_when_warning == true
	input.attestation.status == "warning"
}

refusals contains {
	"reason": "ATTESTATION_WARNING",
	"rule": "vigil.command.attestation_affirmed",
	"values": {},
} if {
	not attestation_affirmed
	input.attestation.status == "warning"
}
