package vigil.command

# METADATA
# title: The command says when it is to be applied
default mode_known := false

mode_known if input.mode in {"now", "idle", "window"}

refusals contains {
	"reason": "POLICY_DENIED",
	"rule": "vigil.command.mode_known",
	"values": {},
} if {
	not mode_known
}

# METADATA
# title: What a staged command waits for
# description: |
#   An update is always staged, and waits for a bedside release unless the patient is known to be disconnected.
#   In an open window only idleness is still to be waited for.
stage_until := "bedside_release" if {
	input.action.class == "U"
	not patient_disconnected
} else := "window" if {
	input.action.class in {"C", "U", "D"}
	input.mode == "window"
	not window_open
} else := "idle" if {
	input.action.class == "U"
} else := "idle" if {
	input.action.class in {"C", "D"}
	input.mode in {"idle", "window"}
}

# METADATA
# title: The site's maintenance window is open
default window_open := false

window_open if input.window_open == true

# METADATA
# title: The command is sent under break-glass
# description: The field may be absent. It relaxes nothing here; it forbids, and asks for a review.
default break_glass := false

break_glass if input.break_glass == true

# METADATA
# title: Break-glass never reaches a therapy, nor destroys
default break_glass_permitted := false

break_glass_permitted if input.action.class in {"R", "C", "U"}

break_glass_permitted if break_glass == false

refusals contains {
	"reason": "POLICY_DENIED",
	"rule": "vigil.command.break_glass_permitted",
	"values": {},
} if {
	not break_glass_permitted
}

# METADATA
# title: What an allowed command owes
obligations contains {"kind": "stage", "values": {"until": stage_until}} if allow

obligations contains {"kind": "show_attestation", "values": {}} if {
	allow
	input.action.class == "R"
}

obligations contains {"kind": "review", "values": {}} if {
	allow
	break_glass
}
