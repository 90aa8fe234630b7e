"""Organisations, people, credentials, sites, gateways, devices, custody, and the certificate authority."""
