package vigil.command

# METADATA
# title: The site has enabled actions on a therapy
default therapy_enabled := false

therapy_enabled if input.action.class in {"R", "C", "U", "D"}

therapy_enabled if input.action.therapy_enabled == true

refusals contains {
	"reason": "THERAPY_NOT_ENABLED",
	"rule": "vigil.command.therapy_enabled",
	"values": {},
} if {
	not therapy_enabled
}

# METADATA
# title: Somebody at the bedside has confirmed the action on a therapy
default bedside_confirmed := false

bedside_confirmed if input.action.class in {"R", "C", "U", "D"}

bedside_confirmed if input.bedside_confirmed == true

refusals contains {
	"reason": "BEDSIDE_CONFIRMATION_MISSING",
	"rule": "vigil.command.bedside_confirmed",
	"values": {},
} if {
	therapy_enabled
	not bedside_confirmed
}

# METADATA
# title: An action on a therapy happens now or not at all
# description: The confirmation at the bedside is about this moment and cannot wait for a later one.
default therapy_immediate := false

therapy_immediate if input.action.class in {"R", "C", "U", "D"}

therapy_immediate if input.mode == "now"

refusals contains {
	"reason": "POLICY_DENIED",
	"rule": "vigil.command.therapy_immediate",
	"values": {"mode": input.mode},
} if {
	not therapy_immediate
}

# METADATA
# title: No patient is known or suspected at the device
# description: Unknown counts as connected.
default patient_disconnected := false

patient_disconnected if input.therapy.patient == "disconnected"

# METADATA
# title: The device is in a therapy state in which the profile lets the action be applied
default state_permitted := false

state_permitted if input.therapy.state in input.action.states

# METADATA
# title: Nobody is put at risk by doing this now
# description: |
#   R changes nothing. U and what waits for idle or a window are staged, and the device checks again. T has its own
#   confirmation.
default patient_safe := false

patient_safe if input.action.class in {"R", "U"}

patient_safe if {
	input.action.class == "C"
	input.mode in {"idle", "window"}
}

patient_safe if {
	input.action.class == "C"
	patient_disconnected
	state_permitted
}

patient_safe if {
	input.action.class == "T"
	state_permitted
}

patient_safe if {
	input.action.class == "D"
	patient_disconnected
	input.mode in {"idle", "window"}
}

patient_safe if {
	input.action.class == "D"
	patient_disconnected
	state_permitted
}

refusals contains {
	"reason": "PATIENT_CONNECTED",
	"rule": "vigil.command.patient_safe",
	"values": {"patient": input.therapy.patient, "therapy": input.therapy.state},
} if {
	not patient_safe
}
