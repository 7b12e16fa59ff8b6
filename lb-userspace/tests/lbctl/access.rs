//! `lbctl access-list`, and what services say of their lists and limits.

use serde_json::json;

use crate::{WEB, run, succeed, succeed_json, support::FakeAgent, web};

#[tokio::test]
async fn lists_are_set_listed_shown_asked_edited_and_removed() {
    let agent = FakeAgent::start(WEB);
    assert!(
        succeed(&agent, "access-list list")
            .await
            .starts_with("no access lists")
    );
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("denied.txt");
    std::fs::write(&file, "# scanners\n10.1.0.0/16\n10.2.0.0/16  # too\n").unwrap();
    let set = format!(
        "access-list set office --allow 10.0.0.0/8 --deny-file {}",
        file.display()
    );
    assert_eq!(
        succeed(&agent, &set).await,
        "access list office has 3 prefixes\n"
    );
    let listed = succeed(&agent, "access-list list").await;
    let [header, row] = listed.lines().collect::<Vec<_>>()[..] else {
        panic!("{listed}");
    };
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        words(header),
        ["NAME", "ALLOW", "DENY", "OTHERS", "SERVICES"]
    );
    assert_eq!(words(row), ["office", "1", "2", "deny", "0"]);
    let line = succeed(&agent, "service set 10.0.0.1:80/tcp --access-list office").await;
    assert_eq!(line, "changed service 10.0.0.1:80/tcp\n");
    let edit = "access-list edit office --allow 10.1.0.0/16 --remove 10.2.0.0/16";
    assert_eq!(succeed(&agent, edit).await, "access list office edited\n");
    let shown = "allow 10.0.0.0/8\nallow 10.1.0.0/16\nservice 10.0.0.1:80/tcp\n";
    assert_eq!(succeed(&agent, "access-list show office").await, shown);
    let judged = succeed(&agent, "access-list check office 192.0.2.1").await;
    assert_eq!(judged, "192.0.2.1: deny by 0.0.0.0/0\n");
    let judged = succeed_json(&agent, "access-list check office 10.1.2.3").await;
    assert_eq!(
        judged,
        json!({"source": "10.1.2.3", "access": "allow", "prefix": "10.1.0.0/16"})
    );
    succeed(&agent, "service set 10.0.0.1:80/tcp --no-access-list").await;
    assert_eq!(web(&agent).access_list, None);
    assert_eq!(
        succeed(&agent, "access-list remove office").await,
        "access list office removed\n"
    );
}

#[tokio::test]
async fn limits_are_set_shown_and_taken_away() {
    let agent = FakeAgent::start(WEB);
    let set = "service set 10.0.0.1:80/tcp --flow-limit 1000,burst=2000 --source-limit 10 --source-prefix-v4 24";
    succeed(&agent, set).await;
    let shown = succeed(&agent, "service show 10.0.0.1:80/tcp").await;
    for line in [
        "flow limit    1000 new flows a second, 2000 at once; 31 refused so far",
        "source limit  10 new flows a second, 10 at once, of each /24; 21 refused so far",
    ] {
        assert!(
            shown.lines().any(|l| l == line),
            "{line}\nis not in\n{shown}"
        );
    }
    succeed(
        &agent,
        "service set 10.0.0.1:80/tcp --flow-limit none --source-limit none",
    )
    .await;
    assert!(!web(&agent).is_guarded());
}

#[tokio::test]
async fn mistakes_are_told_with_their_place_and_change_nothing() {
    let agent = FakeAgent::start(WEB);
    let before = agent.state();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bad.txt");
    std::fs::write(&file, "10.1.0.0/16\n10.1.0.1/16\n").unwrap();
    let bad_file = format!("access-list set office --allow-file {}", file.display());
    for (arguments, code, part) in [
        (
            bad_file.as_str(),
            2,
            "bad.txt:2: `10.1.0.1/16` is not a prefix: has bits set beyond /16",
        ),
        (
            "access-list set office --allow-file /none",
            2,
            "cannot read /none",
        ),
        (
            "access-list set office --allow ten",
            2,
            "write ADDRESS/LENGTH",
        ),
        (
            "access-list edit office --remove 10.0.0.0/8",
            4,
            "no access list office",
        ),
        ("access-list edit office", 2, "--remove"),
        ("access-list show office", 4, "no access list office"),
        (
            "service set 10.0.0.1:80/tcp --access-list office",
            4,
            "no access list office",
        ),
        (
            "service set 10.0.0.1:80/tcp --flow-limit 1000,burst=1",
            2,
            "20 to 3600000",
        ),
    ] {
        let ran = run(&agent.socket, arguments).await;
        assert_eq!(ran.code, code, "{arguments}: {}", ran.stderr);
        assert!(ran.stderr.contains(part), "{arguments}: {}", ran.stderr);
    }
    assert_eq!(agent.state(), before);
}
