package vigil.command_test

import data.vigil.command

test_each_class_can_be_allowed if {
	every document in [reading, change, update, therapy, destruction] {
		allowed(document)
	}
}

test_an_empty_question_is_refused if {
	refused({}) == {["POLICY_DENIED", "class_known"]}
}

test_a_class_without_a_row_is_refused_for_that_alone if {
	every class in ["S1", "X", "", null, 1] {
		refused(object.union(change, {"action": {"class": class}, "device": {"state": "banned"}})) == {[
			"POLICY_DENIED",
			"class_known",
		]}
	}
}

test_several_reasons_come_together if {
	refused(object.union(change, {"work_order": false, "device": {"state": "banned"}})) == {
		["WORK_ORDER_MISSING", "work_order_present"],
		["DEVICE_REVOKED", "device_serviceable"],
	}
}

test_a_refusal_owes_nothing if {
	answer := command.decision with input as object.union(reading, {"device": {"state": "banned"}})
	answer.obligations == set()
}

# Taking any one field away never allows.
test_every_field_of_an_allowed_command_is_needed_or_irrelevant if {
	every field in ["action", "mode", "requester", "device", "build", "target"] {
		refused(object.remove(change, [field]))
	}
}
