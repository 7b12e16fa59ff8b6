//! Settings of a running service, recorded flows, and backends that leave.

use lb_userspace::model::{FlowState, MssClamp, OnDown, Scheduler, Service, Unserved};
use serde_json::json;

use crate::{WEB, run, succeed, succeed_json, support::FakeAgent, web};

#[tokio::test]
async fn each_setting_of_a_service_is_changed_alone() {
    let agent = FakeAgent::start(WEB);
    let mut expected = web(&agent);
    type Step = (&'static str, fn(&mut Service));
    let steps: &[Step] = &[
        ("--scheduler least-connections", |s| {
            s.scheduler = Scheduler::LeastConnections;
        }),
        ("--ring-size 1021", |s| s.ring_size = Some(1_021)),
        ("--flow-state always", |s| s.flow_state = FlowState::Always),
        ("--on-down resteer", |s| s.on_down = Some(OnDown::Resteer)),
        ("--moving-time 5s", |s| {
            s.moving_time = Some(std::time::Duration::from_secs(5));
        }),
        ("--dead-after 0s", |s| {
            s.dead_after = std::time::Duration::ZERO;
        }),
        ("--no-backend unreachable", |s| {
            s.no_backend = Unserved::Unreachable;
        }),
        ("--mss-clamp auto", |s| s.mss_clamp = MssClamp::Auto),
        ("--mss-clamp 1400", |s| s.mss_clamp = MssClamp::To(1_400)),
        ("--mss-clamp off", |s| s.mss_clamp = MssClamp::Off),
        ("--persistence 5m", |s| {
            s.persistence = std::time::Duration::from_secs(300);
        }),
        ("--persistence-prefix 24", |s| {
            s.persistence_prefix = Some(24)
        }),
        ("--persistence 0s", |s| {
            s.persistence = std::time::Duration::ZERO;
        }),
    ];
    for (option, change) in steps {
        let line = succeed(&agent, &format!("service set 10.0.0.1:80/tcp {option}")).await;
        assert_eq!(line, "changed service 10.0.0.1:80/tcp\n");
        change(&mut expected);
        assert_eq!(web(&agent), expected, "{option}");
    }
}

#[tokio::test]
async fn a_second_hop_is_switched_on_and_off_and_shown() {
    let agent = FakeAgent::start("");
    let add = "service add 10.0.0.1:80/tcp --mode gue --second-hop true --backend 10.1.0.2:80";
    succeed(&agent, add).await;
    assert!(web(&agent).second_hop);
    let show = "service show 10.0.0.1:80/tcp";
    let shown = succeed(&agent, show).await;
    assert!(shown.contains("second hop"), "{shown}");
    assert_eq!(succeed_json(&agent, show).await["second_hop"], true);
    succeed(&agent, "service set 10.0.0.1:80/tcp --second-hop false").await;
    assert!(!web(&agent).second_hop);
    let shown = succeed(&agent, show).await;
    assert!(!shown.contains("second hop"), "{shown}");
}

#[tokio::test]
async fn several_settings_are_changed_at_once_and_told_to_programs() {
    let agent = FakeAgent::start(WEB);
    let arguments =
        "service set 10.0.0.1:80/tcp --flow-state always --scheduler round-robin --moving-time 1m";
    let answer = succeed_json(&agent, arguments).await;
    assert_eq!(
        answer["changed"]["settings"],
        json!({"flow_state": "always", "scheduler": "round-robin", "moving_time_ms": 60_000})
    );
    assert_eq!(web(&agent).scheduler, Scheduler::RoundRobin);
}

#[tokio::test]
async fn flows_are_listed_as_a_table_and_as_json() {
    let agent = FakeAgent::start(WEB);
    let expected = "\
SERVICE          CLIENT           BACKEND      STATE        PHASE       IDLE  AGE
10.0.0.1:80/tcp  192.0.2.7:40000  10.1.0.2:80  established  steady  1s 500ms   1m
10.0.0.1:80/tcp  192.0.2.7:40000  10.1.0.2:80  half-open    moving  1s 500ms   1m
2 of 7 flows; --limit shows more
";
    let arguments = "flows --service 10.0.0.1:80/tcp --limit 2";
    assert_eq!(succeed(&agent, arguments).await, expected);
    let json = succeed_json(&agent, arguments).await;
    assert_eq!(
        (&json["total"], &json["flows"][1]["phase"]),
        (&json!(7), &json!("moving"))
    );

    let settling = "flows --service 10.0.0.1:80/tcp --backend 10.1.0.3:81 --phase settling";
    let table = succeed(&agent, settling).await;
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(table.contains("10.1.0.3:81  closing  settling"), "{table}");
    let gone = succeed(&agent, "flows --service [2001:db8::1]:53/udp").await;
    assert!(gone.contains("[2001:db8::7]:40000  gone"), "{gone}");
}

#[tokio::test]
async fn flows_are_counted_without_listing_them() {
    let agent = FakeAgent::start(WEB);
    let arguments = "flows --count --phase moving";
    assert_eq!(succeed(&agent, arguments).await, "4\n");
    assert_eq!(succeed_json(&agent, arguments).await, json!({"total": 4}));
}

#[tokio::test]
async fn no_flows_are_said_to_be_none() {
    let agent = FakeAgent::start("");
    let line = succeed(&agent, "flows").await;
    assert!(line.starts_with("no recorded flows: "), "{line}");
    assert_eq!(succeed(&agent, "flows --count").await, "0\n");
    let json = succeed_json(&agent, "flows").await;
    assert_eq!(json, json!({"total": 0, "flows": []}));
}

#[tokio::test]
async fn a_removed_backend_that_has_flows_is_listed_as_leaving_and_not_counted() {
    let agent = FakeAgent::start(&WEB.replace("10.0.0.1:80/", "10.0.0.1:8081/"));
    let table = succeed(&agent, "backend list 10.0.0.1:8081/tcp").await;
    let states: Vec<_> = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(3))
        .collect();
    assert_eq!(states, ["active", "draining", "leaving"], "{table}");
    let table = succeed(&agent, "service list").await;
    assert!(table.contains("maglev       1/2"), "{table}");
    let json = succeed_json(&agent, "backend list 10.0.0.1:8081/tcp").await;
    assert_eq!(
        (&json[2]["address"], &json[2]["leaving"]),
        (&json!("10.1.0.9:80"), &json!(true))
    );
}

#[tokio::test]
async fn remembered_clients_are_listed_and_counted_apart_from_flows() {
    let agent = FakeAgent::start(WEB);
    let set = "service set 10.0.0.1:80/tcp --persistence 5m --persistence-prefix 24";
    succeed(&agent, set).await;
    let expected = "\
SERVICE          CLIENT        BACKEND      STATE            IDLE  LEFT
10.0.0.1:80/tcp  192.0.2.0/24  10.1.0.2:80  established  1s 500ms    1m
1 of 2 clients; --limit shows more
";
    assert_eq!(succeed(&agent, "flows --clients --limit 1").await, expected);
    let one = "flows --clients --count --backend 10.1.0.3:81";
    assert_eq!(succeed(&agent, one).await, "1\n");
    assert_eq!(succeed_json(&agent, one).await, json!({"total": 1}));
    let shown = succeed(&agent, "service show 10.0.0.1:80/tcp").await;
    let line =
        "persistence  5m by the first 24 bits of addresses: 7 clients; so far 1 without room";
    assert!(shown.lines().any(|l| l == line), "{shown}");
}

#[tokio::test]
async fn a_service_joins_a_group_by_its_name_alone_and_is_shown_with_it() {
    let agent = FakeAgent::start("");
    let add = "service add 10.0.0.1:80/tcp --mode ipip --group web --persistence 5m --health none \
               --backend 10.1.0.2:80 --backend 10.1.0.3:80";
    succeed(&agent, add).await;
    let line = succeed(&agent, "service add 10.0.0.1:443/tcp --group web").await;
    assert_eq!(
        line,
        "added service 10.0.0.1:443/tcp with the backends of its group\n"
    );
    let shown = succeed(&agent, "service show 10.0.0.1:443/tcp").await;
    for line in ["group        web", "check        none"] {
        assert!(shown.lines().any(|l| l == line), "{shown}");
    }
    assert!(shown.contains("10.1.0.3:80"), "{shown}");
    succeed(&agent, "backend drain 10.0.0.1:443/tcp 10.1.0.2:80").await;
    let listed = succeed_json(&agent, "backend list 10.0.0.1:80/tcp").await;
    assert_eq!(listed[0]["state"], "draining");
}

#[tokio::test]
async fn a_running_service_joins_a_group_of_the_same_settings_and_leaves_it() {
    let agent = FakeAgent::start("");
    let add = |port: u16, more: &str| {
        format!(
            "service add 10.0.0.1:{port}/tcp --mode ipip --health none --backend 10.1.0.2:80 {more}"
        )
    };
    succeed(&agent, &add(80, "--group web")).await;
    succeed(&agent, &add(443, "--scheduler round-robin")).await;
    let join = "service set 10.0.0.1:443/tcp --group web";
    let differs = run(&agent.socket, join).await;
    assert_eq!(differs.code, 5, "{}", differs.stderr);
    assert!(differs.stderr.contains("scheduler"), "{}", differs.stderr);
    let group_of = |port: u16| {
        let id = format!("10.0.0.1:{port}/tcp").parse().unwrap();
        agent.state().service(id).unwrap().group.clone()
    };
    assert_eq!(group_of(443), None);
    // What it shares is made the same by the same command.
    succeed(&agent, &format!("{join} --scheduler maglev")).await;
    assert_eq!(group_of(443).as_deref(), Some("web"));
    succeed(&agent, "service set 10.0.0.1:80/tcp --no-group").await;
    assert_eq!((group_of(80), group_of(443).is_some()), (None, true));
    let both = run(
        &agent.socket,
        "service set 10.0.0.1:80/tcp --no-group --group web",
    );
    assert_eq!(both.await.code, 2);
}
