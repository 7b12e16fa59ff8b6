//! Source routes and subsets over the API.

use serde_json::json;

use crate::{WEB, ask, support::FakeAgent};

const SERVICE: &str = "/v1/services/10.0.0.1:80%2Ftcp";

#[tokio::test]
async fn routes_and_subsets_are_told_as_they_were_given_and_change_together() {
    let agent = FakeAgent::start(WEB);
    let routes = json!({"192.0.2.0/24": "canary", "2001:db8::/32": "default"});
    let edit = json!({"source_routes": routes, "subsets": {"10.1.0.3:81": ["canary"]}});
    let (status, changed) = ask(&agent, "PATCH", SERVICE, edit.to_string()).await;
    assert_eq!((status, &changed["changed"]["settings"]), (200, &edit));
    let (_, told) = ask(&agent, "GET", SERVICE, "").await;
    assert_eq!(told["source_routes"], routes);
    assert_eq!(
        told["subsets"],
        json!([
            {"name": "default", "prefixes": 1, "backends": 1, "up": 1},
            {"name": "canary", "prefixes": 1, "backends": 1, "up": 0},
        ])
    );
    assert_eq!(told["backends"][1]["subsets"], json!(["canary"]));
    let none = json!({"source_routes": {}, "subsets": {"10.1.0.3:81": []}});
    assert_eq!(ask(&agent, "PATCH", SERVICE, none.to_string()).await.0, 200);
    let (_, told) = ask(&agent, "GET", SERVICE, "").await;
    assert_eq!(told.get("source_routes"), None, "{told}");
    assert_eq!(told.get("subsets"), None, "{told}");
}

#[tokio::test]
async fn a_service_comes_with_them_and_what_is_wrong_is_refused() {
    let agent = FakeAgent::start(WEB);
    let new = |routes: serde_json::Value| {
        json!({
            "id": "10.0.0.9:80/tcp", "mode": "ipip", "source_routes": routes,
            "backends": [{"address": "10.1.0.8:80"}, {"address": "10.1.0.9:80", "subsets": ["a"]}],
        })
        .to_string()
    };
    for (routes, part) in [
        (json!({"192.0.2.1/24": "a"}), "write 192.0.2.0/24"),
        (json!({"192.0.2.0/24": "a b"}), "is not a subset's name"),
    ] {
        let (status, told) = ask(&agent, "POST", "/v1/services", new(routes)).await;
        assert_eq!(status, 400, "{told}");
        assert!(told.to_string().contains(part), "{told}");
    }
    let routes = json!({"192.0.2.0/24": "a"});
    let (status, told) = ask(&agent, "POST", "/v1/services", new(routes)).await;
    assert_eq!(status, 201, "{told}");
}
