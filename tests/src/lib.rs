//! Fixtures for the integration tests: network namespaces, the agent, clients and servers.
