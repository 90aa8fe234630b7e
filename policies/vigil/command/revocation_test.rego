package vigil.command_test

cure := {"effect": "none", "curative": true}

test_a_quarantined_device_can_be_read_and_put_right if {
	quarantined := {"device": {"state": "quarantined"}}
	allowed(object.union(reading, quarantined))
	allowed(object.union(update, quarantined))
	allowed(object.union(object.union(change, quarantined), {"target": cure}))
	every document in [change, therapy, destruction] {
		refused(object.union(document, quarantined)) == {["DEVICE_QUARANTINED", "device_serviceable"]}
	}
	every document in [therapy, destruction] {
		refused(object.union(object.union(document, quarantined), {"target": cure})) == {[
			"DEVICE_QUARANTINED",
			"device_serviceable",
		]}
	}
}

test_a_banned_device_is_refused_everything if {
	every document in [reading, change, update, therapy, destruction] {
		refused(object.union(document, {"device": {"state": "banned"}})) == {["DEVICE_REVOKED", "device_serviceable"]}
	}
	values(object.union(change, {"device": {"state": "banned"}})).DEVICE_REVOKED == {"state": "banned"}
}

test_a_device_out_of_service_is_refused_everything if {
	every document in [reading, change, update, therapy, destruction] {
		every state in ["pending", "stored", "retired", "unheard-of"] {
			refused(object.union(document, {"device": {"state": state}})) == {["DEVICE_QUARANTINED", "device_serviceable"]}
		}
	}
	values(object.union(change, {"device": {"state": "stored"}})).DEVICE_QUARANTINED == {"state": "stored"}
}

test_flag_and_no_new_leave_the_running_build_alone if {
	every document in [reading, change, update, therapy, destruction] {
		every effect in ["none", "flag", "no_new"] {
			allowed(object.union(document, {"build": {"effect": effect}}))
		}
	}
}

test_corrective_only_leaves_reading_and_the_cure if {
	restricted := {"build": {"effect": "corrective_only"}}
	allowed(object.union(reading, restricted))
	allowed(object.union(update, restricted))
	allowed(object.union(object.union(change, restricted), {"target": cure}))
	every document in [change, therapy, destruction] {
		refused(object.union(document, restricted)) == {["FIRMWARE_REVOKED", "build_usable"]}
	}
}

test_a_target_that_does_not_cure_is_no_correction if {
	restricted := {"build": {"effect": "corrective_only"}}
	refused(object.union(object.union(change, restricted), {"target": {"effect": "none", "curative": false}})) == {[
		"FIRMWARE_REVOKED",
		"build_usable",
	]}
	refused(object.union(object.union(change, restricted), {"target": {"effect": "no_new", "curative": true}})) == {
		["FIRMWARE_REVOKED", "build_usable"],
		["FIRMWARE_REVOKED", "target_unrevoked"],
	}
	allowed(object.union(object.union(change, restricted), {"target": {"effect": "flag", "curative": true}}))
}

test_a_denied_build_leaves_an_update_by_two_persons if {
	denied := {"build": {"effect": "deny"}}
	every document in [reading, change, therapy, destruction] {
		refused(object.union(document, denied)) == {["FIRMWARE_REVOKED", "build_usable"]}
	}
	refused(object.union(object.union(change, denied), {"target": cure})) == {["FIRMWARE_REVOKED", "build_usable"]}
	refused(object.union(object.union(change, denied), {
		"target": cure,
		"approvers": [first_approver, second_approver],
	})) == {["FIRMWARE_REVOKED", "build_usable"]}
	refused(object.union(object.union(update, denied), {"target": {"curative": false}})) == {
		["FIRMWARE_REVOKED", "build_usable"],
		["FIRMWARE_ROLLBACK", "target_not_lower"],
	}
	allowed(object.union(update, denied))
	refused(object.union(object.union(update, denied), {
		"action": {"approvals": 1},
		"approvers": [first_approver],
		"release_signature": true,
	})) == {["FIRMWARE_REVOKED", "build_usable"]}
	values(object.union(change, denied)).FIRMWARE_REVOKED == {"effect": "deny"}
}

test_an_unheard_of_effect_is_refused if {
	every document in [reading, change, update, therapy, destruction] {
		refused(object.union(document, {"build": {"effect": "unheard-of"}})) == {["FIRMWARE_REVOKED", "build_usable"]}
	}
	some_refusal(object.union(change, {"target": {"effect": "unheard-of", "curative": true}}), "FIRMWARE_REVOKED")
}

test_an_update_names_its_target if {
	refused(object.union(update, {"target": null})) == {["POLICY_DENIED", "target_named"]}
}

test_a_withdrawn_target_is_not_installed if {
	every document in [change, update] {
		every effect in ["no_new", "corrective_only", "deny"] {
			refused(object.union(document, {"target": {"effect": effect, "curative": true}})) == {[
				"FIRMWARE_REVOKED",
				"target_unrevoked",
			]}
			values(object.union(document, {"target": {"effect": effect, "curative": true}})).FIRMWARE_REVOKED == {"effect": effect}
		}
	}
	refused(object.union(update, {"target": {"effect": "deny", "curative": false}})) == {[
		"FIRMWARE_REVOKED",
		"target_unrevoked",
	]}
}

test_a_flagged_target_is_installed if {
	allowed(object.union(update, {"target": {"effect": "flag", "curative": true}}))
}

test_an_update_does_not_go_back_without_an_authorisation if {
	refused(object.union(update, {"target": {"curative": false}})) == {["FIRMWARE_ROLLBACK", "target_not_lower"]}
	allowed(object.union(change, {"target": {"effect": "none", "curative": false}}))
}

test_a_hold_stops_what_replaces_or_erases if {
	held := {"device": {"holds": 2}}
	every document in [update, destruction] {
		refused(object.union(document, held)) == {["EVIDENCE_HOLD", "hold_absent"]}
		values(object.union(document, held)).EVIDENCE_HOLD == {"holds": 2}
	}
	every document in [reading, change, therapy] {
		allowed(object.union(document, held))
	}
}
