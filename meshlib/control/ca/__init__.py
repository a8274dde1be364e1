"""The certificate authority: identities of workloads, and the tokens that prove them before the first one."""
