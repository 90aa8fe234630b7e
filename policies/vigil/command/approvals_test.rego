package vigil.command_test

test_two_persons_approve_an_update_or_a_destruction if {
	every document in [update, destruction] {
		every approvers in [[], [first_approver]] {
			refused(object.union(document, {"approvers": approvers})) == {["APPROVALS_MISSING", "approvals_enough"]}
		}
		values(object.union(document, {"approvers": [first_approver]})).APPROVALS_MISSING == {"required": 2, "given": 1}
	}
}

test_the_profile_cannot_ask_for_fewer_than_the_class if {
	every document in [update, destruction] {
		refused(object.union(document, {"action": {"approvals": 0}, "approvers": []})) == {[
			"APPROVALS_MISSING",
			"approvals_enough",
		]}
	}
}

test_the_profile_can_ask_for_more if {
	refused(object.union(change, {"action": {"approvals": 1}})) == {["APPROVALS_MISSING", "approvals_enough"]}
	allowed(object.union(change, {"action": {"approvals": 1}, "approvers": [first_approver]}))
	refused(object.union(update, {"action": {"approvals": 3}})) == {["APPROVALS_MISSING", "approvals_enough"]}
}

test_the_release_signature_is_one_approval_of_an_update if {
	signed := {"action": {"approvals": 1}, "approvers": [first_approver], "release_signature": true}
	allowed(object.union(update, signed))
	some_refusal(object.union(update, object.union(signed, {"approvers": []})), "APPROVALS_MISSING")
	some_refusal(object.union(update, object.union(signed, {"release_signature": false})), "APPROVALS_MISSING")
	some_refusal(object.union(destruction, signed), "APPROVALS_MISSING")
}

test_a_number_of_approvals_that_is_none_is_refused if {
	every approvals in ["0", null, true] {
		refused(object.union(change, {"action": {"approvals": approvals}}))
	}
}

test_nobody_approves_twice if {
	refused(object.union(update, {"approvers": [first_approver, first_approver]})) == {[
		"APPROVER_NOT_DISTINCT",
		"approvers_distinct",
	]}
}

test_approvals_that_nobody_asked_for_do_no_harm if {
	allowed(object.union(change, {"approvers": [first_approver, first_approver]}))
}

test_the_requester_does_not_approve if {
	requester := object.union(first_approver, {"id": "p-requester"})
	refused(object.union(update, {"approvers": [requester, second_approver]})) == {[
		"APPROVER_NOT_DISTINCT",
		"approvers_distinct",
	]}
	refused(object.union(update, {"approvers": [requester, first_approver, second_approver]})) == {[
		"APPROVER_NOT_DISTINCT",
		"approvers_distinct",
	]}
}

test_an_approval_that_does_not_count_is_from_another_person_too if {
	every id in ["p-requester", "p-first"] {
		idle := {"id": id, "organization": "elsewhere", "roles": []}
		refused(object.union(update, {"approvers": [first_approver, second_approver, idle]})) == {[
			"APPROVER_NOT_DISTINCT",
			"approvers_distinct",
		]}
	}
}

test_an_approval_needs_the_role if {
	refused(object.union(update, {"approvers": [first_approver, object.union(second_approver, {"roles": ["auditor"]})]})) == {[
		"APPROVALS_MISSING",
		"approvals_enough",
	]}
}

test_an_approval_comes_from_the_device_s_organization if {
	stranger := object.union(second_approver, {"organization": "elsewhere"})
	refused(object.union(update, {"approvers": [first_approver, stranger]})) == {["APPROVALS_MISSING", "approvals_enough"]}
	allowed(object.union(update, {"approvers": [first_approver, object.union(second_approver, {"organization": "*"})]}))
}
