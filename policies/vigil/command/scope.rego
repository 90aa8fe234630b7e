package vigil.command

# METADATA
# title: The row of the class table that this action falls under
class := data.vigil.config.classes[input.action.class]

# METADATA
# title: The class has a row
# description: S1 has none. It never asks policy, and an answer given by mistake must be no.
default class_known := false

class_known if class.roles

# METADATA
# title: The requester holds a role of this class
default role_permitted := false

role_permitted if {
	some role in input.requester.roles
	role in class.roles
}

refusals contains {
	"reason": "ROLE_NOT_PERMITTED",
	"rule": "vigil.command.role_permitted",
	"values": {"class": input.action.class},
} if {
	not role_permitted
}

# METADATA
# title: The requester's grant covers the device's organization and site
# description: A star stands for every organization or every site; an empty name stands for none.
default device_in_scope := false

device_in_scope if {
	organization_covered(input.requester.organization)
	some site in input.requester.sites
	site in {input.device.site, "*"}
	site != ""
}

organization_covered(organization) if {
	organization in {input.device.organization, "*"}
	organization != ""
}

refusals contains {
	"reason": "NOT_IN_SCOPE",
	"rule": "vigil.command.device_in_scope",
	"values": {},
} if {
	not device_in_scope
}

# METADATA
# title: The change belongs to a work order
default work_order_present := false

work_order_present if class.work_order == false

work_order_present if input.work_order == true

refusals contains {
	"reason": "WORK_ORDER_MISSING",
	"rule": "vigil.command.work_order_present",
	"values": {},
} if {
	not work_order_present
}
