package vigil.command_test

test_a_therapy_is_touched_only_where_the_site_enabled_it if {
	refused(object.union(therapy, {"action": {"therapy_enabled": false}})) == {["THERAPY_NOT_ENABLED", "therapy_enabled"]}
	refused(object.union(therapy, {"action": {"therapy_enabled": false}, "bedside_confirmed": false})) == {[
		"THERAPY_NOT_ENABLED",
		"therapy_enabled",
	]}
}

test_a_therapy_is_touched_only_with_a_confirmation_at_the_bedside if {
	refused(object.union(therapy, {"bedside_confirmed": false})) == {["BEDSIDE_CONFIRMATION_MISSING", "bedside_confirmed"]}
}

test_a_therapy_is_touched_now_or_not_at_all if {
	every mode in ["idle", "window"] {
		refused(object.union(therapy, {"mode": mode})) == {["POLICY_DENIED", "therapy_immediate"]}
	}
	values(object.union(therapy, {"mode": "idle"})).POLICY_DENIED == {"mode": "idle"}
}

test_a_therapy_is_touched_in_the_states_of_the_profile if {
	refused(object.union(therapy, {"therapy": {"state": "alarm"}})) == {["PATIENT_CONNECTED", "patient_safe"]}
}

test_nothing_is_changed_now_with_a_patient if {
	every document in [change, destruction] {
		every patient in ["connected", "unknown"] {
			refused(object.union(document, {"therapy": {"patient": patient}})) == {["PATIENT_CONNECTED", "patient_safe"]}
		}
	}
	values(object.union(change, {"therapy": {"patient": "unknown"}})).PATIENT_CONNECTED == {
		"patient": "unknown",
		"therapy": "idle",
	}
}

test_nothing_is_changed_now_in_another_state_than_the_profile_s if {
	every document in [change, destruction] {
		every state in ["delivering", "alarm", "unknown"] {
			refused(object.union(document, {"therapy": {"state": state}})) == {["PATIENT_CONNECTED", "patient_safe"]}
		}
	}
}

test_a_change_can_wait_for_the_patient_to_be_gone if {
	every mode in ["idle", "window"] {
		allowed(object.union(change, {"mode": mode, "therapy": {"patient": "connected", "state": "delivering"}}))
	}
}

test_a_destruction_waits_for_idleness_but_not_for_a_patient if {
	every mode in ["idle", "window"] {
		allowed(object.union(destruction, {"mode": mode, "therapy": {"state": "delivering"}}))
		refused(object.union(destruction, {"mode": mode, "therapy": {"patient": "connected"}})) == {[
			"PATIENT_CONNECTED",
			"patient_safe",
		]}
	}
}

test_reading_and_updating_are_allowed_with_a_patient if {
	every document in [reading, update] {
		every patient in ["connected", "unknown"] {
			allowed(object.union(document, {"therapy": {"patient": patient, "state": "delivering"}}))
		}
	}
}
