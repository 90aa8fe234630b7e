package vigil.command

# METADATA
# title: What a corrective-only restriction leaves
# description: Reading, and a change that leads to an unrevoked build of no lower security version.
default corrective := false

corrective if input.action.class == "R"

corrective if {
	input.action.class in {"C", "U"}
	input.target.effect in {"none", "flag"}
	input.target.curative == true
}

# METADATA
# title: The device is in service, or quarantined and being put right
default device_serviceable := false

device_serviceable if input.device.state == "active"

device_serviceable if {
	input.device.state == "quarantined"
	corrective
}

refusals contains {
	"reason": "DEVICE_REVOKED",
	"rule": "vigil.command.device_serviceable",
	"values": {"state": input.device.state},
} if {
	input.device.state == "banned"
}

refusals contains {
	"reason": "DEVICE_QUARANTINED",
	"rule": "vigil.command.device_serviceable",
	"values": {"state": input.device.state},
} if {
	not device_serviceable
	input.device.state != "banned"
}

# METADATA
# title: The build that the device runs allows this
# description: |
#   flag is shown and no_new stops new installations; neither stops the use of what is installed. A denied build
#   has one way out: an update that two persons approved.
default build_usable := false

build_usable if input.build.effect in {"none", "flag", "no_new"}

build_usable if {
	input.build.effect == "corrective_only"
	corrective
}

build_usable if {
	input.build.effect == "deny"
	input.action.class == "U"
	corrective
	count(approving_persons) >= 2
}

refusals contains {
	"reason": "FIRMWARE_REVOKED",
	"rule": "vigil.command.build_usable",
	"values": {"effect": input.build.effect},
} if {
	not build_usable
}

# METADATA
# title: An update names the build it leads to
default target_named := false

target_named if input.action.class in {"R", "C", "T", "D"}

target_named if {
	input.action.class == "U"
	is_object(input.target)
}

refusals contains {
	"reason": "POLICY_DENIED",
	"rule": "vigil.command.target_named",
	"values": {},
} if {
	not target_named
}

# METADATA
# title: What is to be installed is not withdrawn from new installations
default target_unrevoked := false

target_unrevoked if input.target == null

target_unrevoked if input.target.effect in {"none", "flag"}

refusals contains {
	"reason": "FIRMWARE_REVOKED",
	"rule": "vigil.command.target_unrevoked",
	"values": {"effect": input.target.effect},
} if {
	not target_unrevoked
}

# METADATA
# title: An update leads to no lower security version without a downgrade authorisation
default target_not_lower := false

target_not_lower if input.action.class in {"R", "C", "T", "D"}

target_not_lower if {
	input.action.class == "U"
	input.target.curative == true
}

refusals contains {
	"reason": "FIRMWARE_ROLLBACK",
	"rule": "vigil.command.target_not_lower",
	"values": {},
} if {
	not target_not_lower
	target_named
	target_unrevoked
}

# METADATA
# title: No hold lies on the device's evidence
# description: A hold keeps a device as it is for an investigation. It stops what would replace or erase.
default hold_absent := false

hold_absent if input.action.class in {"R", "C", "T"}

hold_absent if input.device.holds == 0

refusals contains {
	"reason": "EVIDENCE_HOLD",
	"rule": "vigil.command.hold_absent",
	"values": {"holds": input.device.holds},
} if {
	not hold_absent
}
