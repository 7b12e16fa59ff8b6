//! Access lists over the API: made, shown, asked, edited, named by services, and refused.

use serde_json::{Value, json};

use crate::{WEB, ask, support::FakeAgent};

const OFFICE: &str = "/v1/access-lists/office";
const SERVICE: &str = "/v1/services/10.0.0.1:80%2Ftcp";

#[tokio::test]
async fn a_list_is_made_shown_edited_used_and_removed() {
    let agent = FakeAgent::start(WEB);
    let body = json!({"allow": ["10.0.0.0/8", "192.0.2.1"], "deny": ["10.1.0.0/16"]});
    let added = json!({"changed": {"action": "added", "access_list": "office"}});
    assert_eq!(
        ask(&agent, "PUT", OFFICE, body.to_string()).await,
        (201, added)
    );
    let edited = json!({"changed": {"action": "edited", "access_list": "office"}});
    assert_eq!(
        ask(&agent, "PUT", OFFICE, body.to_string()).await,
        (200, edited)
    );
    let named = json!({"access_list": "office", "flow_limit": "10,burst=20", "source_limit": 5});
    let (status, _) = ask(&agent, "PATCH", SERVICE, named.to_string()).await;
    assert_eq!(status, 200);
    let shown = json!({
        "name": "office", "allow": ["10.0.0.0/8", "192.0.2.1/32"], "deny": ["10.1.0.0/16"],
        "services": ["10.0.0.1:80/tcp"],
    });
    assert_eq!(ask(&agent, "GET", OFFICE, "").await, (200, shown));
    let summary = json!([{
        "name": "office", "allow": 2, "deny": 1, "others": "deny", "services": ["10.0.0.1:80/tcp"],
    }]);
    assert_eq!(
        ask(&agent, "GET", "/v1/access-lists", "").await,
        (200, summary)
    );
    let edit = json!({"deny": ["10.2.0.0/16"], "remove": ["10.1.0.0/16"]});
    let (status, answer) = ask(&agent, "PATCH", OFFICE, edit.to_string()).await;
    assert_eq!((status, &answer["changed"]["edit"]), (200, &edit));
    for (source, access, prefix) in [
        ("10.1.2.3", "allow", "10.0.0.0/8"),
        ("10.2.2.3", "deny", "10.2.0.0/16"),
        ("2001:db8::1", "deny", "::/0"),
    ] {
        let (status, judged) = ask(
            &agent,
            "GET",
            &format!("{OFFICE}/judge?source={source}"),
            "",
        )
        .await;
        let expected = json!({"source": source, "access": access, "prefix": prefix});
        assert_eq!((status, judged), (200, expected));
    }
    let (status, answer) = ask(&agent, "DELETE", OFFICE, "").await;
    assert_eq!(
        (status, &answer["code"]),
        (409, &Value::from("access_list_in_use"))
    );
    let shown = ask(&agent, "GET", SERVICE, "").await.1;
    let settings = [
        "access_list",
        "flow_limit",
        "source_limit",
        "source_prefix_v4",
        "source_prefix_v6",
    ];
    let settings = settings.map(|key| shown[key].clone());
    assert_eq!(json!(settings), json!(["office", "10,burst=20", 5, 32, 64]));
    let (status, _) = ask(&agent, "PATCH", SERVICE, r#"{"access_list":null}"#).await;
    assert_eq!(status, 200);
    let removed = json!({"changed": {"action": "removed", "access_list": "office"}});
    assert_eq!(ask(&agent, "DELETE", OFFICE, "").await, (200, removed));
}

#[tokio::test]
async fn bad_calls_about_lists_are_refused_and_change_nothing() {
    let agent = FakeAgent::start(WEB);
    ask(&agent, "PUT", OFFICE, r#"{"allow":["10.0.0.0/8"]}"#).await;
    let before = agent.state();
    let none = "/v1/access-lists/none";
    for (method, path, body, status, code, part) in [
        (
            "PUT",
            OFFICE,
            r#"{"allow":["10.0.0.1/8"]}"#,
            400,
            "malformed",
            "write 10.0.0.0/8",
        ),
        (
            "PUT",
            OFFICE,
            r#"{"allows":[]}"#,
            400,
            "malformed",
            "unknown field `allows`",
        ),
        (
            "PUT",
            OFFICE,
            r#"{"allow":["10.0.0.0/8"],"deny":["10.0.0.0/8"]}"#,
            400,
            "bad_access_list",
            "both allowed and denied",
        ),
        (
            "PUT",
            "/v1/access-lists/an%20office",
            "{}",
            400,
            "bad_access_list",
            "use 1 to 64",
        ),
        (
            "PATCH",
            OFFICE,
            "{}",
            400,
            "malformed",
            "give allow, deny or remove",
        ),
        (
            "PATCH",
            OFFICE,
            r#"{"remove":["10.9.0.0/16"]}"#,
            404,
            "unknown_prefix",
            "10.9.0.0/16",
        ),
        (
            "PATCH",
            none,
            r#"{"allow":["10.9.0.0/16"]}"#,
            404,
            "unknown_access_list",
            "none",
        ),
        (
            "GET",
            none,
            "",
            404,
            "unknown_access_list",
            "lbctl access-list list",
        ),
        ("DELETE", none, "", 404, "unknown_access_list", "none"),
        (
            "GET",
            "/v1/access-lists/office/judge?source=me",
            "",
            400,
            "malformed",
            "source",
        ),
        (
            "PATCH",
            SERVICE,
            r#"{"access_list":"none"}"#,
            404,
            "unknown_access_list",
            "none",
        ),
        (
            "PATCH",
            SERVICE,
            r#"{"flow_limit":0}"#,
            400,
            "malformed",
            "1 to 1000000000 flows",
        ),
        (
            "PATCH",
            SERVICE,
            r#"{"source_prefix_v4":33}"#,
            400,
            "invalid",
            "1 to 32",
        ),
    ] {
        let (got, answer) = ask(&agent, method, path, body).await;
        let call = format!("{method} {path} {body}: {got} {answer}");
        assert_eq!(
            (got, &answer["code"]),
            (status, &Value::from(code)),
            "{call}"
        );
        let message = answer["error"].as_str().unwrap();
        assert!(message.contains(part), "{call}");
        assert_eq!(agent.state(), before, "{call}");
    }
}

#[tokio::test]
async fn a_list_may_be_longer_than_other_bodies() {
    let agent = FakeAgent::start(WEB);
    let prefix = |n: u32| format!("2001:db8:{:x}:{:x}::/64", n >> 16, n & 0xffff);
    let prefixes: Vec<String> = (0..60_000).map(prefix).collect();
    let body = json!({ "deny": prefixes }).to_string();
    assert!(body.len() > 1 << 20);
    assert_eq!(ask(&agent, "PUT", OFFICE, body).await.0, 201);
}
