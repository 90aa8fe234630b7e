package vigil.command_test

test_each_role_of_a_class_is_permitted if {
	every class, roles in {
		"R": ["technician", "approver", "safety", "auditor", "recall"],
		"C": ["technician"],
		"U": ["technician"],
		"T": ["technician"],
		"D": ["technician", "approver"],
	} {
		every role in roles {
			allowed(of_class(class, {"requester": {"roles": ["visitor", role]}}))
		}
	}
}

test_another_role_is_not_permitted if {
	every class in ["C", "U", "T"] {
		some_refusal(of_class(class, {"requester": {"roles": ["approver"]}}), "ROLE_NOT_PERMITTED")
	}
	some_refusal(object.union(destruction, {"requester": {"roles": ["auditor"]}}), "ROLE_NOT_PERMITTED")
	some_refusal(object.union(reading, {"requester": {"roles": []}}), "ROLE_NOT_PERMITTED")
	values(object.union(reading, {"requester": {"roles": []}})).ROLE_NOT_PERMITTED == {"class": "R"}
}

test_another_site_is_out_of_scope if {
	refused(object.union(change, {"device": {"site": "st-anna-south"}})) == {["NOT_IN_SCOPE", "device_in_scope"]}
}

test_another_organization_is_out_of_scope if {
	refused(object.union(change, {"requester": {"organization": "elsewhere"}})) == {["NOT_IN_SCOPE", "device_in_scope"]}
}

test_every_site_of_the_organization_is_covered_by_a_star if {
	allowed(object.union(change, {"requester": {"sites": ["*"]}}))
}

test_a_star_of_sites_stays_inside_the_organization if {
	some_refusal(object.union(change, {"requester": {"organization": "elsewhere", "sites": ["*"]}}), "NOT_IN_SCOPE")
}

test_every_organization_is_covered_by_a_star if {
	allowed(object.union(change, {"requester": {"organization": "*"}}))
}

test_an_empty_name_covers_nothing if {
	some_refusal(
		object.union(change, {"requester": {"organization": ""}, "device": {"organization": ""}}),
		"NOT_IN_SCOPE",
	)
	some_refusal(object.union(change, {"requester": {"sites": [""]}, "device": {"site": ""}}), "NOT_IN_SCOPE")
	some_refusal(object.union(change, {"requester": {"sites": []}}), "NOT_IN_SCOPE")
}

test_every_change_belongs_to_a_work_order if {
	every document in [change, update, therapy, destruction] {
		refused(object.union(document, {"work_order": false})) == {["WORK_ORDER_MISSING", "work_order_present"]}
	}
	allowed(object.union(reading, {"work_order": false}))
}

of_class(class, difference) := object.union(
	{"R": reading, "C": change, "U": update, "T": therapy, "D": destruction}[class],
	difference,
)

some_refusal(document, reason) if {
	reason in {given | some [given, _] in refused(document)}
}
