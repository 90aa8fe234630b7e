package vigil.command_test

with_attestation(document, attestation) := object.union(document, {"attestation": attestation})

poor_attestations := [
	{"status": "none"},
	{"status": "contraindicated"},
	{"status": "warning"},
	{"stale": true},
	{"basis": "self-reported"},
	{"basis": "manual"},
]

test_reading_updating_and_destroying_ask_for_no_attestation if {
	every document in [reading, update, destruction] {
		every attestation in poor_attestations {
			allowed(with_attestation(document, attestation))
		}
	}
}

test_changes_ask_for_an_affirming_and_fresh_one if {
	every document in [change, therapy] {
		every attestation, refusal in {
			{"status": "none"}: {["ATTESTATION_MISSING", "attestation_present"]},
			{"status": "none", "stale": true}: {["ATTESTATION_MISSING", "attestation_present"]},
			{"status": "contraindicated"}: {["ATTESTATION_CONTRAINDICATED", "attestation_sound"]},
			{"status": "warning"}: {["ATTESTATION_WARNING", "attestation_affirmed"]},
			{"stale": true}: {["ATTESTATION_STALE", "attestation_fresh"]},
			{"basis": "self-reported"}: {["ATTESTATION_MISSING", "attestation_present"]},
			{"basis": "manual"}: {["ATTESTATION_MISSING", "attestation_present"]},
			{"status": "unheard-of"}: {["ATTESTATION_MISSING", "attestation_present"]},
			{"status": "warning", "stale": true}: {
				["ATTESTATION_WARNING", "attestation_affirmed"],
				["ATTESTATION_STALE", "attestation_fresh"],
			},
		} {
			refused(with_attestation(document, attestation)) == refusal
		}
	}
	values(with_attestation(change, {"stale": true, "age_ms": 7})).ATTESTATION_STALE == {"age_ms": 7}
	values(with_attestation(change, {"basis": "manual"})).ATTESTATION_MISSING == {"basis": "manual"}
}

test_a_correction_works_on_a_warning if {
	correcting := {"action": {"corrective_when_warning": true}, "attestation": {"status": "warning"}}
	allowed(object.union(change, correcting))
	refused(object.union(therapy, correcting)) == {["ATTESTATION_WARNING", "attestation_affirmed"]}
	refused(object.union(object.union(change, correcting), {"attestation": {"stale": true}})) == {[
		"ATTESTATION_STALE",
		"attestation_fresh",
	]}
}

test_a_correction_does_not_work_on_a_contraindication if {
	refused(object.union(change, {
		"action": {"corrective_when_warning": true},
		"attestation": {"status": "contraindicated"},
	})) == {["ATTESTATION_CONTRAINDICATED", "attestation_sound"]}
}
