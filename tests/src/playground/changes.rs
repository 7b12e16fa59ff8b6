//! What is new between two answers of the agent: backends that went down or came up, were drained,
//! weighed, added or removed. Pure.

use lb_userspace::{
    api::dto::{Backend, Condition, Service},
    model::Admin,
};

/// One thing that happened to one backend in one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The backend's address, without its port.
    pub backend: std::net::IpAddr,
    /// The service's VIP.
    pub vip: std::net::SocketAddr,
    /// What it did, as `is up`.
    pub what: String,
    /// Why, where that is known.
    pub why: Option<String>,
}

/// What happened between `before` and `after`, in the order of the services. A service that came or
/// went is its backends' coming or going.
pub fn between(before: &[Service], after: &[Service]) -> Vec<Change> {
    let mut changes = Vec::new();
    for old in before {
        let new = after.iter().find(|new| new.id == old.id);
        let left: &[Backend] = new.map_or(&[], |new| &new.backends);
        let gone = |backend: &&Backend| !left.iter().any(|new| new.address == backend.address);
        let gone = old.backends.iter().filter(gone);
        changes.extend(gone.map(|backend| change(old, backend, "was removed")));
    }
    for new in after {
        let old = before.iter().find(|old| old.id == new.id);
        for backend in &new.backends {
            let known =
                old.and_then(|old| old.backends.iter().find(|b| b.address == backend.address));
            match known {
                None => changes.push(change(new, backend, "was added")),
                Some(known) => changes.extend(of_backend(new, known, backend)),
            }
        }
    }
    changes
}

fn change(service: &Service, backend: &Backend, what: impl Into<String>) -> Change {
    Change {
        backend: backend.address.ip(),
        vip: service.id.vip,
        what: what.into(),
        why: None,
    }
}

/// A restarted agent calls every backend starting for a moment, which is no change.
fn of_backend(service: &Service, before: &Backend, after: &Backend) -> Vec<Change> {
    let mut changes = Vec::new();
    match (before.condition, after.condition) {
        (Condition::Down, Condition::Up) => changes.push(change(service, after, "is up")),
        (Condition::Up | Condition::Starting, Condition::Down) => changes.push(Change {
            why: after.last_error.clone(),
            ..change(service, after, "is down")
        }),
        _ => {}
    }
    match (before.state, after.state) {
        (before, after_it) if before == after_it => {}
        (_, Admin::Active) => changes.push(change(service, after, "takes connections")),
        (_, Admin::Draining) => changes.push(change(service, after, "drains")),
        (_, Admin::Maintenance) => changes.push(change(service, after, "is in maintenance")),
        (_, Admin::Down) => changes.push(change(service, after, "is forced down")),
        (_, Admin::Up) => changes.push(change(service, after, "is forced up")),
    }
    if before.weight != after.weight {
        changes.push(change(
            service,
            after,
            format!("has weight {}", after.weight),
        ));
    }
    changes
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A service as the agent would answer it, with backends given as
    /// (address, weight, state, condition).
    pub fn service(id: &str, backends: &[(&str, u16, &str, &str)]) -> Service {
        let traffic = json!({"packets": 0, "bytes": 0, "flows": 0});
        let backend = |&(address, weight, state, condition): &(&str, u16, &str, &str)| {
            json!({
                "address": address, "weight": weight, "state": state, "condition": condition,
                "last_error": (condition == "down").then_some("connection refused"),
                "latency_us": null, "reachable": true, "slots": 1, "traffic": traffic,
                "max_connections": null, "leaving": false, "recorded": 0, "connections": null,
            })
        };
        let backends: Vec<_> = backends.iter().map(backend).collect();
        serde_json::from_value(json!({
            "id": id, "mode": "nat", "ring_size": 251, "health": {"type": "http"},
            "scheduler": "maglev", "flow_state": "auto", "on_down": "keep",
            "moving_time_ms": 900_000, "dead_after_ms": 60_000,
            "no_backend": "drop",
            "flows": {
                "steady": 251, "moving": 0, "settling": 0,
                "passed": {"moving": 0, "settling": 0, "steady": 0},
                "established": 0, "half_open": 0, "lookups": 0, "recorded": 0, "overflows": 0,
                "named": 0,
            },
            "traffic": traffic, "backends": backends,
        }))
        .expect("a service")
    }

    const VIP: &str = "10.0.0.1:80/tcp";
    const ADDRESS: &str = "10.2.0.11:80";

    fn said(before: &[Service], after: &[Service]) -> Vec<String> {
        let changes = between(before, after);
        changes
            .into_iter()
            .map(|c| format!("{} {}", c.backend, c.what))
            .collect()
    }

    fn one(weight: u16, state: &str, condition: &str) -> Vec<Service> {
        vec![service(VIP, &[(ADDRESS, weight, state, condition)])]
    }

    #[test]
    fn a_backend_that_goes_down_is_told_with_the_reason() {
        let changes = between(&one(1, "active", "up"), &one(1, "active", "down"));
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].what, "is down");
        assert_eq!(changes[0].why.as_deref(), Some("connection refused"));
        assert_eq!(changes[0].vip, "10.0.0.1:80".parse().unwrap());
    }

    #[test]
    fn every_kind_of_change_is_told() {
        let base = one(1, "active", "up");
        let cases = [
            (one(1, "active", "down"), base.clone(), "10.2.0.11 is up"),
            (base.clone(), one(1, "draining", "up"), "10.2.0.11 drains"),
            (
                one(1, "draining", "up"),
                base.clone(),
                "10.2.0.11 takes connections",
            ),
            (
                base.clone(),
                one(5, "active", "up"),
                "10.2.0.11 has weight 5",
            ),
            (base.clone(), Vec::new(), "10.2.0.11 was removed"),
            (Vec::new(), base.clone(), "10.2.0.11 was added"),
        ];
        for (before, after, expected) in cases {
            assert_eq!(said(&before, &after), [expected]);
        }
    }

    #[test]
    fn a_restarted_agent_that_has_not_checked_yet_is_no_news() {
        let (up, starting) = (one(1, "active", "up"), one(1, "active", "starting"));
        assert!(said(&up, &starting).is_empty());
        assert!(said(&starting, &up).is_empty());
        assert!(said(&up, &up).is_empty());
    }
}
