package vigil.command

# METADATA
# title: How many persons besides the requester must approve
# description: The profile's number, never below the class table's.
approvals_required := max([input.action.approvals, approvals_floor]) if is_number(input.action.approvals)

# METADATA
# title: The least number of persons of this class
# description: The manufacturer's release signature is one of the two approvals of an update.
approvals_floor := class.approvals - 1 if {
	class.release_signature_counts
	input.release_signature == true
} else := class.approvals

# METADATA
# title: Approvals by persons with the role, of the device's organization
approvals_given := [approver.id |
	some approver in input.approvers
	organization_covered(approver.organization)
	some role in data.vigil.config.approver_roles
	role in approver.roles
]

# METADATA
# title: The persons behind those approvals, without the requester
approving_persons := {id |
	some id in approvals_given
	id != input.requester.id
}

# METADATA
# title: Everybody who approved, in whatever capacity, without the requester
other_persons := {approver.id |
	some approver in input.approvers
	approver.id != input.requester.id
}

# METADATA
# title: There are as many approvals as the action needs
default approvals_enough := false

approvals_enough if count(approvals_given) >= approvals_required

refusals contains {
	"reason": "APPROVALS_MISSING",
	"rule": "vigil.command.approvals_enough",
	"values": {"required": approvals_required, "given": count(approvals_given)},
} if {
	not approvals_enough
}

# METADATA
# title: Every approval comes from another person, none of them the requester
# description: Judged over all that were given, also those that do not count.
default approvers_distinct := false

approvers_distinct if approvals_required == 0

approvers_distinct if count(other_persons) == count(input.approvers)

refusals contains {
	"reason": "APPROVER_NOT_DISTINCT",
	"rule": "vigil.command.approvers_distinct",
	"values": {},
} if {
	not approvers_distinct
}
