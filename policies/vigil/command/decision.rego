# METADATA
# title: Commands to medical devices
# description: |
#   Says whether one command may reach one device now. Every fact below is stated positively and is false by
#   default; allow is the conjunction of all of them, so that a missing field, a mistyped name or a failing
#   built-in function refuses. Reasons are identifiers with values; the sentences are made elsewhere.
# schemas:
#   - input: schema.command
package vigil.command

# METADATA
# title: The answer, the reasons of a refusal, and what an allowed command owes
# entrypoint: true
decision := {
	"allow": allow,
	"reasons": reasons,
	"obligations": obligations,
}

# METADATA
# title: All the facts that an allowed command needs
default allow := false

allow if {
	class_known
	mode_known
	role_permitted
	device_in_scope
	work_order_present
	device_serviceable
	build_usable
	target_named
	target_unrevoked
	target_not_lower
	hold_absent
	attestation_present
	attestation_sound
	attestation_fresh
	attestation_affirmed
	approvals_enough
	approvers_distinct
	therapy_enabled
	therapy_immediate
	bedside_confirmed
	patient_safe
	break_glass_permitted
	count(refusals) == 0
}

# METADATA
# title: Why not
# description: A class without a row in the table is refused for that alone; no other rule has a meaning then.
default reasons := {{"reason": "POLICY_DENIED", "rule": "vigil.command.class_known", "values": {}}}

reasons := refusals if class_known
