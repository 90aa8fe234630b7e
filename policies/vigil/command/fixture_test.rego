package vigil.command_test

import data.vigil.command

# A change of configuration at which nothing is wrong; every test changes one thing of it.
change := {
	"action": {
		"name": "set-alarm-limit",
		"class": "C",
		"approvals": 0,
		"corrective_when_warning": false,
		"therapy_enabled": false,
		"states": ["idle"],
	},
	"mode": "now",
	"requester": {
		"id": "p-requester",
		"organization": "st-anna",
		"sites": ["st-anna-north"],
		"roles": ["technician"],
	},
	"approvers": [],
	"release_signature": false,
	"device": {
		"id": "dev-aaaaaaaaaaaaaaaa",
		"organization": "st-anna",
		"site": "st-anna-north",
		"model": "infusion-pump-3",
		"state": "active",
		"holds": 0,
	},
	"attestation": {
		"status": "affirming",
		"age_ms": 1000,
		"stale": false,
		"vector": {"executables": 2},
		"basis": "attested",
	},
	"therapy": {"state": "idle", "patient": "disconnected"},
	"build": {"effect": "none"},
	"target": null,
	"work_order": true,
	"bedside_confirmed": false,
	"window_open": false,
}

reading := object.union(change, {"action": {"class": "R"}, "work_order": false})

first_approver := {"id": "p-first", "organization": "st-anna", "roles": ["approver"]}

second_approver := {"id": "p-second", "organization": "st-anna", "roles": ["approver"]}

update := object.union(change, {
	"action": {"class": "U", "approvals": 2},
	"approvers": [first_approver, second_approver],
	"target": {"effect": "none", "curative": true},
	"mode": "idle",
})

therapy := object.union(change, {
	"action": {"class": "T", "therapy_enabled": true, "states": ["delivering"]},
	"therapy": {"state": "delivering", "patient": "connected"},
	"bedside_confirmed": true,
})

destruction := object.union(change, {
	"action": {"class": "D", "approvals": 2},
	"approvers": [first_approver, second_approver],
})

allowed(document) if {
	answer := command.decision with input as document
	answer.allow == true
	count(answer.reasons) == 0
}

# The reasons and the rules that gave them, of a refusal.
refused(document) := {[reason.reason, trim_prefix(reason.rule, "vigil.command.")] | some reason in answer.reasons} if {
	answer := command.decision with input as document
	answer.allow == false
	count(answer.obligations) == 0
	every reason in answer.reasons {
		object.keys(reason) == {"reason", "rule", "values"}
	}
}

values(document) := {reason.reason: reason.values | some reason in answer.reasons} if {
	answer := command.decision with input as document
}

owes(document) := answer.obligations if {
	answer := command.decision with input as document
	answer.allow == true
}
