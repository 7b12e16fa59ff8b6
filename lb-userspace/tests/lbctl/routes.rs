//! Source routes and subsets on the command line.

use serde_json::json;

use crate::{WEB, run, succeed, succeed_json, support::FakeAgent, web};

const SERVICE: &str = "10.0.0.1:80/tcp";

/// The line of a field, as `service show` has it.
fn line<'a>(shown: &'a str, begins: &str) -> &'a str {
    let mut lines = shown.lines();
    lines.find(|line| line.starts_with(begins)).unwrap_or(shown)
}

#[tokio::test]
async fn routes_and_subsets_are_set_together_shown_and_taken_away() {
    let agent = FakeAgent::start(WEB);
    let first = web(&agent).backends[0].address;
    let set = format!(
        "service set {SERVICE} --source-route 192.0.2.0/24=canary --source-route 2001:db8::/32=canary --subsets {first}=canary"
    );
    let said = succeed(&agent, &set).await;
    assert_eq!(said, format!("changed service {SERVICE}\n"));
    assert_eq!(web(&agent).source_routes.len(), 2);
    assert_eq!(web(&agent).backends[0].subsets, ["canary"]);
    let shown = succeed(&agent, &format!("service show {SERVICE}")).await;
    let canary = "subset         canary: 1 of 1 backends up; 192.0.2.0/24, 2001:db8::/32";
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        shown.lines().any(|l| words(l) == words(canary)),
        "{}\n{shown}",
        line(&shown, "subset")
    );
    assert!(shown.contains("all other sources"), "{shown}");
    let header = line(&shown, "BACKEND");
    assert!(header.contains("SUBSETS"), "{shown}");
    let json = succeed_json(&agent, &format!("service show {SERVICE}")).await;
    assert_eq!(
        json["source_routes"],
        json!({"192.0.2.0/24": "canary", "2001:db8::/32": "canary"})
    );
    assert_eq!(json["subsets"][1]["name"], "canary");
    assert_eq!(json["backends"][0]["subsets"], json!(["canary"]));
    // Those that are given are all.
    let set = format!("service set {SERVICE} --source-route 10.9.0.0/16=canary");
    succeed(&agent, &set).await;
    assert_eq!(web(&agent).source_routes.len(), 1);
    let gone = format!("service set {SERVICE} --no-source-routes --subsets {first}=");
    succeed(&agent, &gone).await;
    assert!(!web(&agent).is_split());
    let shown = succeed(&agent, &format!("service show {SERVICE}")).await;
    assert!(!shown.contains("SUBSETS"), "{shown}");
}

#[tokio::test]
async fn services_and_backends_come_with_routes_and_subsets() {
    let agent = FakeAgent::start(WEB);
    let add = "service add 10.0.0.9:80/tcp --mode ipip --source-route 192.0.2.0/24=a --backend 10.1.0.8:80 --backend 10.1.0.9:80,subset=a,subset=default";
    succeed(&agent, add).await;
    let said = succeed(
        &agent,
        "backend add 10.0.0.9:80/tcp 10.1.0.10:80 --subset a --subset b",
    );
    assert_eq!(
        said.await,
        "added backend 10.1.0.10:80 to 10.0.0.9:80/tcp with weight 1, of subset a and b\n"
    );
    let json = succeed_json(&agent, "service show 10.0.0.9:80/tcp").await;
    let subsets: Vec<_> = (0..3)
        .map(|n| json["backends"][n]["subsets"].clone())
        .collect();
    assert_eq!(json!(subsets), json!([null, ["a", "default"], ["a", "b"]]));
}

#[tokio::test]
async fn mistakes_are_told_and_change_nothing() {
    let agent = FakeAgent::start(WEB);
    let before = agent.state();
    for (arguments, code, part) in [
        ("--source-route 10.1.0.1/16=a", 2, "has bits set beyond /16"),
        ("--source-route 10.1.0.0/16", 2, "PREFIX=SUBSET"),
        ("--subsets 10.1.0.2:80", 2, "ADDRESS:PORT=NAME,NAME"),
        ("--subsets 10.1.0.99:80=a", 4, "no backend 10.1.0.99:80"),
        (
            "--source-route 10.1.0.0/16=a --no-source-routes",
            2,
            "cannot be used with",
        ),
        (
            "--source-route 10.1.0.0/16=a --scheduler round-robin",
            5,
            "use maglev",
        ),
    ] {
        let arguments = format!("service set {SERVICE} {arguments}");
        let ran = run(&agent.socket, &arguments).await;
        assert_eq!(ran.code, code, "{arguments}: {}", ran.stderr);
        assert!(ran.stderr.contains(part), "{arguments}: {}", ran.stderr);
    }
    assert_eq!(agent.state(), before);
}
