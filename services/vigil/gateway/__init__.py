"""The gateway: the enforcement point in the hospital, between people, the control plane and the devices."""
