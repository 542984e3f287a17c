"""HTTP: one module a resource, its schemas beside its routes. Errors are RFC 9457 problems everywhere."""
