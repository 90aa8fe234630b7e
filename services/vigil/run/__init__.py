"""Everything on one machine: first start (`first`), folders (`layout`), processes (`supervisor`), the whole (`up`)."""
