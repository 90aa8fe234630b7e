package vigil.command_test

staged(until) := {{"kind": "stage", "values": {"until": until}}}

test_an_unheard_of_mode_is_refused if {
	every document in [reading, update] {
		refused(object.union(document, {"mode": "soon"})) == {["POLICY_DENIED", "mode_known"]}
	}
}

test_an_immediate_change_owes_nothing if {
	every document in [change, therapy, destruction] {
		owes(document) == set()
	}
}

test_a_change_waits_for_what_it_asked_for if {
	every document in [change, destruction] {
		owes(object.union(document, {"mode": "idle"})) == staged("idle")
		owes(object.union(document, {"mode": "window"})) == staged("window")
		owes(object.union(document, {"mode": "window", "window_open": true})) == staged("idle")
	}
}

test_an_update_is_always_staged if {
	every mode in ["now", "idle"] {
		owes(object.union(update, {"mode": mode})) == staged("idle")
	}
	owes(object.union(update, {"mode": "window"})) == staged("window")
	owes(object.union(update, {"mode": "window", "window_open": true})) == staged("idle")
}

test_an_update_waits_for_a_bedside_release_with_a_patient if {
	every mode in ["now", "idle", "window"] {
		every patient in ["connected", "unknown", "unheard-of"] {
			owes(object.union(update, {"mode": mode, "therapy": {"patient": patient}})) == staged("bedside_release")
		}
	}
}

test_reading_shows_the_attestation if {
	every mode in ["now", "idle", "window"] {
		owes(object.union(reading, {"mode": mode})) == {{"kind": "show_attestation", "values": {}}}
	}
}

test_break_glass_owes_a_review if {
	owes(object.union(change, {"break_glass": true})) == {{"kind": "review", "values": {}}}
	owes(object.union(change, {"break_glass": false})) == set()
	every document in [reading, update] {
		{"kind": "review", "values": {}} in owes(object.union(document, {"break_glass": true}))
	}
}

test_break_glass_never_reaches_a_therapy_nor_destroys if {
	every document in [therapy, destruction] {
		refused(object.union(document, {"break_glass": true})) == {["POLICY_DENIED", "break_glass_permitted"]}
	}
}
