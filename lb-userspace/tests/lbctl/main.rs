//! The command line as its users run it: every verb, both outputs, each exit code.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod checks;
mod failures;
mod flows;
mod quic;
mod routes;

use std::{path::Path, process::Stdio, time::Duration};

use lb_userspace::model::{Admin, BitRate, Failback, Rated, Service};
use serde_json::{Value, json};
use support::{
    EPOCH_OF_MANY, FORGOTTEN, FakeAgent, PANICS, WEIGHT_OF_A_DRAINED, WEIGHT_OF_A_STANDBY,
    WEIGHT_OF_ONE_THAT_ADAPTS, WEIGHT_OF_ONE_THAT_GROWS, WEIGHT_OF_ONE_THAT_IS_HELD,
    WEIGHT_OF_ONE_THAT_IS_UP,
};
use tokio::{io::AsyncReadExt as _, process::Command, time::timeout};

const WEB: &str = r#"
[[service]]
vip = "10.0.0.1:80/tcp"
mode = "nat"
health = { type = "http", path = "/health", port = 8080 }
backend = [{ address = "10.1.0.2:80", max_connections = 9 }, { address = "10.1.0.3:81", weight = 3, state = "draining" }]
[[service]]
vip = "[2001:db8::1]:53/udp"
mode = "ipip"
scheduler = "source-hash"
health = { type = "none" }
"#;

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn lbctl(socket: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lbctl"));
    command
        .arg("--socket")
        .arg(socket)
        .args(arguments.split_whitespace());
    command.env_remove("LBCTL_SOCKET").kill_on_drop(true);
    command
}

async fn run(socket: &Path, arguments: &str) -> Ran {
    let output = lbctl(socket, arguments).stdin(Stdio::null()).output();
    let output = timeout(Duration::from_secs(60), output)
        .await
        .unwrap()
        .unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn succeed(agent: &FakeAgent, arguments: &str) -> String {
    let ran = run(&agent.socket, arguments).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{arguments}");
    ran.stdout
}

async fn succeed_json(agent: &FakeAgent, arguments: &str) -> Value {
    let text = succeed(agent, &format!("--output json {arguments}")).await;
    serde_json::from_str(&text).unwrap()
}

fn web(agent: &FakeAgent) -> Service {
    let id = "10.0.0.1:80/tcp".parse().unwrap();
    agent.state().service(id).unwrap().clone()
}

#[tokio::test]
async fn status_is_shown_as_fields() {
    let agent = FakeAgent::start(WEB);
    let expected = format!(
        "instance      default (lbd {})\n\
         interfaces    eth0 (native)\n\
         services      2\n\
         backends      1 up, 1 down\n\
         flow tables   established 1200 of 262144 (0.5%), half-open 65536 of 65536 (100.0%), sessions 3 of 262144 (0.0%)\n\
         address pool  snat: 2 addresses, ports 1000 to 1999 of each; 3 sessions\n\
         announced     10.0.0.1 (claimed by others in 3 frames: `lbctl events`)\n\
         device        eth0.100 (802.1q 100) over eth0\n\
         generation    7\n\
         unknown port  reset\n\
         drops         no_backend 3\n\
         answers       reset 2\n\
         fragments     first 4\n",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(succeed(&agent, "status").await, expected);
    assert_eq!(
        succeed_json(&agent, "status").await["drops"]["no_backend"],
        3
    );
}

#[tokio::test]
async fn services_are_listed_as_a_table() {
    let agent = FakeAgent::start(WEB);
    let expected = "\
SERVICE               MODE  SCHEDULER     UP  CHECK      RING  PACKETS   BYTES  FLOWS
10.0.0.1:80/tcp       nat   maglev       1/2  http:8080  1004     2468  113578     24
[2001:db8::1]:53/udp  ipip  source-hash  0/0  none       1004     2468  113578     24
";
    assert_eq!(succeed(&agent, "service list").await, expected);
    let json = succeed_json(&agent, "service list").await;
    assert_eq!(json[1]["id"], "[2001:db8::1]:53/udp");
}

#[tokio::test]
async fn one_service_is_shown_with_its_check_and_backends() {
    let agent = FakeAgent::start(WEB);
    let expected = "\
service      10.0.0.1:80/tcp
group        none
mode         nat
scheduler    maglev
ring         1004 slots: 1000 steady, 3 moving, 1 settling
passed       20 slots began to move, 17 to settle, 16 became steady
flow state   auto
flows        10 established, 4 half-open; so far 30 recorded, 70 looked up, 2 without room
moving time  15m
persistence  none
on down      keep
dead after   1m
no backend   drop
mtu          1460 to 1480 bytes, by backend
mss clamp    off
check        http:8080 /health every 1000 ms, timeout 500 ms, rise 2, fall 3
traffic      2468 packets, 113578 bytes, 24 flows

BACKEND      WEIGHT  STATE     CONDITION  SHARE  PACKETS  FLOWS  RECORDED  UNKNOWN   IN PROGRESS  LATENCY  REASON
10.1.0.2:80       1  active    up         50.0%     1234     12         5  -                 3/9    250µs  -
10.1.0.3:81       3  draining  down        0.0%     1234     12         5  17 slots            -        -  connection refused
";
    assert_eq!(
        succeed(&agent, "service show 10.0.0.1:80/tcp").await,
        expected
    );
    let json = succeed_json(&agent, "service show 10.0.0.1:80/tcp").await;
    assert_eq!(agent.snapshots(), 0, "of all services");
    assert_eq!(json["health"]["path"], "/health");
}

#[tokio::test]
async fn backends_are_listed_of_one_service_or_of_all() {
    let agent = FakeAgent::start(WEB);
    for arguments in ["backend list", "backend list 10.0.0.1:80/tcp"] {
        let table = succeed(&agent, arguments).await;
        assert_eq!(table.lines().count(), 3, "{table}");
        assert!(
            table
                .lines()
                .nth(1)
                .unwrap()
                .starts_with("10.0.0.1:80/tcp  10.1.0.2:80"),
            "{table}"
        );
        let json = succeed_json(&agent, arguments).await;
        assert_eq!(
            (&json[1]["service"], &json[1]["weight"]),
            (&json!("10.0.0.1:80/tcp"), &json!(3))
        );
    }
    let empty = "backend list [2001:db8::1]:53/udp";
    assert!(succeed(&agent, empty).await.starts_with("no backends: "));
    assert_eq!(succeed_json(&agent, empty).await, json!([]));
}

#[tokio::test]
async fn a_service_is_added_with_all_its_options() {
    let agent = FakeAgent::start("");
    assert!(
        succeed(&agent, "service list")
            .await
            .starts_with("no services: ")
    );
    let added = succeed(
        &agent,
        "service add 10.0.0.1:80/tcp --mode nat --ring-size 251 --health http --health-path /ok \
         --health-host web --health-port 8080 --interval 2s --timeout 250ms --rise 4 --fall 5 \
         --scheduler round-robin --flow-state always --on-down resteer --moving-time 5m \
         --dead-after 10s --no-backend reset --mss-clamp 1360 --backend 10.1.0.2:80 --backend 10.1.0.3:80,weight=7 \
         --backend 10.1.0.4:80,max-connections=5 --backend 10.1.0.5:80,max-connections=6,weight=8",
    );
    assert_eq!(
        added.await,
        "added service 10.0.0.1:80/tcp with 4 backends\n"
    );
    let expected = lb_userspace::config::parse(
        r#"
[[service]]
vip = "10.0.0.1:80/tcp"
mode = "nat"
ring_size = 251
scheduler = "round-robin"
flow_state = "always"
on_down = "resteer"
moving_time = "5m"
dead_after = "10s"
no_backend = "reset"
mss_clamp = 1360
health = { type = "http", path = "/ok", host = "web", port = 8080, interval = "2s", timeout = "250ms", rise = 4, fall = 5 }
backend = [{ address = "10.1.0.2:80" }, { address = "10.1.0.3:80", weight = 7 }, { address = "10.1.0.4:80", max_connections = 5 }, { address = "10.1.0.5:80", weight = 8, max_connections = 6 }]
"#,
        "test",
    );
    assert_eq!(web(&agent), expected.unwrap().services[0]);
}

#[tokio::test]
async fn a_service_is_added_with_defaults_and_removed() {
    let agent = FakeAgent::start("");
    let line = succeed(&agent, "service add 10.0.0.1:80/tcp --mode ipip").await;
    assert!(line.contains("it has no backends yet"), "{line}");
    assert_eq!(web(&agent).health, lb_userspace::model::Health::default());
    let line = succeed(&agent, "service remove 10.0.0.1:80/tcp").await;
    assert_eq!(line, "removed service 10.0.0.1:80/tcp\n");
    assert_eq!(agent.state().services().len(), 0);
}

#[tokio::test]
async fn backends_are_added_removed_drained_weighed_and_limited_in_one_line_each() {
    let agent = FakeAgent::start(WEB);
    for (arguments, line) in [
        (
            "add 10.0.0.1:80/tcp 10.1.0.4:80 --weight 5",
            "added backend 10.1.0.4:80 to 10.0.0.1:80/tcp with weight 5\n",
        ),
        (
            "add 10.0.0.1:80/tcp 10.1.0.5:80 --max-connections 6",
            "added backend 10.1.0.5:80 to 10.0.0.1:80/tcp with weight 1 and at most 6 flows\n",
        ),
        (
            "limit 10.0.0.1:80/tcp 10.1.0.4:80 7",
            "backend 10.1.0.4:80 of 10.0.0.1:80/tcp takes at most 7 flows\n",
        ),
        (
            "add 10.0.0.1:80/tcp 10.1.0.6:80 --max-flow-rate 500 --max-bandwidth 1.5G",
            "added backend 10.1.0.6:80 to 10.0.0.1:80/tcp with weight 1, which can carry 500 new flows a second and can be sent 1.5Gbit/s\n",
        ),
        (
            "capacity 10.0.0.1:80/tcp 10.1.0.6:80 --flow-rate none --bandwidth 2Gbit/s",
            "backend 10.1.0.6:80 of 10.0.0.1:80/tcp does not say how many new flows a second it can carry and can be sent 2Gbit/s\n",
        ),
        (
            "limit 10.0.0.1:80/tcp 10.1.0.2:80 none",
            "backend 10.1.0.2:80 of 10.0.0.1:80/tcp has no limit\n",
        ),
        (
            "remove 10.0.0.1:80/tcp 10.1.0.3:81",
            "removed backend 10.1.0.3:81 from 10.0.0.1:80/tcp\n",
        ),
        (
            "drain 10.0.0.1:80/tcp 10.1.0.2:80",
            "backend 10.1.0.2:80 of 10.0.0.1:80/tcp drains: it takes no new flows\n",
        ),
        (
            "weight 10.0.0.1:80/tcp 10.1.0.2:80 9",
            "backend 10.1.0.2:80 of 10.0.0.1:80/tcp has weight 9\n",
        ),
    ] {
        assert_eq!(succeed(&agent, &format!("backend {arguments}")).await, line);
    }
    let found: Vec<_> = web(&agent)
        .backends
        .iter()
        .map(|b| (b.address.to_string(), b.weight, b.admin, b.max_connections))
        .collect();
    let expected = [
        ("10.1.0.2:80".to_owned(), 9, Admin::Draining, None),
        ("10.1.0.4:80".to_owned(), 5, Admin::Active, Some(7)),
        ("10.1.0.5:80".to_owned(), 1, Admin::Active, Some(6)),
        ("10.1.0.6:80".to_owned(), 1, Admin::Active, None),
    ];
    assert_eq!(found, expected);
    let rated = web(&agent).backends[3].rated;
    let wanted = Rated {
        max_flow_rate: None,
        max_bandwidth: Some(BitRate(2_000_000_000)),
    };
    assert_eq!(rated, wanted);
    let line = succeed(&agent, "backend undrain 10.0.0.1:80/tcp 10.1.0.2:80").await;
    assert!(line.contains("is active"), "{line}");
    assert_eq!(web(&agent).backends[0].admin, Admin::Active);
}

#[tokio::test]
async fn tiers_are_given_shown_and_failed_over() {
    let agent = FakeAgent::start("");
    let add = "service add 10.0.0.1:80/tcp --mode ipip --spill-below 40 --failback manual \
               --backend 10.1.0.2:80 --backend 10.1.0.3:80,tier=1";
    succeed(&agent, add).await;
    let web = || web(&agent);
    assert_eq!((web().spill_below, web().failback), (40, Failback::Manual));
    let shown = succeed(&agent, "service show 10.0.0.1:80/tcp").await;
    for part in [
        "0: 100.0% of new flows, 1 of 1 healthy; 1: 0.0% of new flows, 1 of 1 healthy",
        "below 40% of weight; failback manual",
    ] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let line = succeed(&agent, "failover 10.0.0.1:80/tcp --to 1").await;
    assert!(line.contains("go to tier 1 first"), "{line}");
    assert_eq!(web().from_tier, 1);
    succeed(&agent, "failback 10.0.0.1:80/tcp").await;
    assert_eq!(web().from_tier, 0);
    let line = succeed(&agent, "backend tier 10.0.0.1:80/tcp 10.1.0.3:80 2").await;
    assert_eq!(
        line,
        "backend 10.1.0.3:80 of 10.0.0.1:80/tcp is of tier 2\n"
    );
    succeed(&agent, "service set 10.0.0.1:80/tcp --failback 1m").await;
    assert_eq!(web().failback.to_string(), "1m");
}

#[tokio::test]
async fn vips_are_announced_when_asked_to_and_services_say_which() {
    let agent = FakeAgent::start(WEB);
    let announced = || web(&agent).announce;
    assert!(!announced());
    succeed(&agent, "service set 10.0.0.1:80/tcp --announce true").await;
    assert!(announced());
    let shown = succeed(&agent, "service show 10.0.0.1:80/tcp").await;
    assert!(shown.contains("announced"), "{shown}");
    succeed(&agent, "service set 10.0.0.1:80/tcp --announce false").await;
    assert!(!announced());
    let line = succeed(&agent, "announce 10.0.0.1").await;
    assert_eq!(line, "10.0.0.1 announced on eth0\n");
    let json = succeed_json(&agent, "announce 10.0.0.1").await;
    assert_eq!(json, json!({"vips": ["10.0.0.1"], "interfaces": ["eth0"]}));
}

#[tokio::test]
async fn how_backends_come_back_is_set_and_shown() {
    let agent = FakeAgent::start(WEB);
    succeed(&agent, "service set 10.0.0.1:80/tcp --slow-start 30s").await;
    let shown = succeed(&agent, "service show 10.0.0.1:80/tcp").await;
    assert!(shown.contains("30s from 10%"), "{shown}");
    succeed(&agent, "service set 10.0.0.1:80/tcp --slow-start off").await;
    assert!(web(&agent).slow_start.is_off());
    let grows = format!("10.1.0.9:80 --weight {WEIGHT_OF_ONE_THAT_GROWS}");
    succeed(&agent, &format!("backend add 10.0.0.1:80/tcp {grows}")).await;
    let list = succeed(&agent, "backend list 10.0.0.1:80/tcp").await;
    assert!(list.contains("44 (grown: 35%)"), "{list}");
    let json = succeed_json(&agent, "backend list 10.0.0.1:80/tcp").await;
    let backends = json.as_array().unwrap();
    let grown = backends
        .iter()
        .find(|b| b["weight"] == WEIGHT_OF_ONE_THAT_GROWS);
    let expected = json!({"weight_percent": 35, "left_ms": 20_000});
    assert_eq!(grown.unwrap()["slow_start"], expected);
}

#[tokio::test]
async fn what_weights_follow_is_set_and_shown() {
    let agent = FakeAgent::start(WEB);
    let set = "service set 10.0.0.1:80/tcp";
    let slow = "--adaptive {from=[\"latency\"],least=30}";
    succeed(&agent, &format!("{set} {slow}")).await;
    assert_eq!(web(&agent).adaptive.unwrap().least, 30);
    let shown = succeed(&agent, "service show 10.0.0.1:80/tcp").await;
    let said = "by latency, 30% to 200% of each weight, every 10s, at most 5% of slots unsteady; held back until more are steady";
    assert!(shown.contains(said), "{shown}");
    let adapts = format!("10.1.0.9:80 --weight {WEIGHT_OF_ONE_THAT_ADAPTS}");
    succeed(&agent, &format!("backend add 10.0.0.1:80/tcp {adapts}")).await;
    let list = succeed(&agent, "backend list 10.0.0.1:80/tcp").await;
    assert!(list.contains("37 (adapted: 26%)"), "{list}");
    succeed(&agent, &format!("{set} --no-adaptive")).await;
    assert_eq!(web(&agent).adaptive, None);
    for (from, code, problem) in [
        ("luck", 2, "`luck` is nothing that weights can follow"),
        ("agent", 5, "no check is of type \"agent\""),
    ] {
        let arguments = format!("{set} --adaptive {{from=[\"{from}\"]}}");
        let ran = run(&agent.socket, &arguments).await;
        assert_eq!(ran.code, code, "{}", ran.stderr);
        assert!(ran.stderr.contains(problem), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn who_is_kept_out_is_shown() {
    let agent = FakeAgent::start(WEB);
    let set = "service set 10.0.0.1:80/tcp --flap-damping";
    succeed(&agent, &format!("{set} 20s")).await;
    let shown = succeed(&agent, "service show 10.0.0.1:80/tcp").await;
    assert!(shown.contains("20s to 5m\n"), "{shown}");
    let held = format!("10.1.0.9:80 --weight {WEIGHT_OF_ONE_THAT_IS_HELD}");
    succeed(&agent, &format!("backend add 10.0.0.1:80/tcp {held}")).await;
    let json = succeed_json(&agent, "backend list 10.0.0.1:80/tcp").await;
    let backends = json.as_array().unwrap();
    let held = backends
        .iter()
        .find(|b| b["weight"] == WEIGHT_OF_ONE_THAT_IS_HELD);
    let expected = json!({"failures": 3, "left_ms": 20_000});
    assert_eq!(held.unwrap()["damping"], expected);
    assert!(backends[0].get("damping").is_none(), "{json}");
    succeed(&agent, &format!("{set} off")).await;
    assert!(web(&agent).flap_damping.is_off());
}

#[tokio::test]
async fn what_packets_show_is_shown_where_they_are_looked_at() {
    let agent = FakeAgent::start(WEB);
    let shown = succeed(&agent, "service show 10.0.0.1:80/tcp").await;
    assert!(!shown.contains("WENT ON"), "{shown}");
    let set = "service set 10.0.0.1:80/tcp --passive";
    succeed(&agent, &format!("{set} refusals=2,max_ejected=30%")).await;
    let shown = succeed(&agent, "service show 10.0.0.1:80/tcp").await;
    let row = ["4321", "65", "7", "1001", "89", "1.75ms", "2", "19s"];
    let rows = shown.lines().filter(|line| {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        words == row
    });
    assert!(rows.count() > 0, "{shown}");
    assert!(shown.contains("refusals=2,max_ejected=30%\n"), "{shown}");
    let json = succeed_json(&agent, "backend list 10.0.0.1:80/tcp").await;
    let expected = json!({
        "accepted": 4_321, "refused": 65, "unreachable": 7, "progressed": 1_001, "missed": 89,
        "handshake_us": 1_750, "ejections": 2, "left_ms": 19_000,
    });
    assert_eq!(json[0]["passive"], expected);
    succeed(&agent, &format!("{set} off")).await;
    assert!(web(&agent).passive.is_off());
}

#[tokio::test]
async fn a_panic_is_shown_by_its_service_and_by_the_status() {
    let agent = FakeAgent::start(WEB);
    let set = |percent| format!("service set 10.0.0.1:80/tcp --panic-below {percent}");
    succeed(&agent, &set(50)).await;
    let shown = succeed(&agent, "service show 10.0.0.1:80/tcp").await;
    assert!(shown.contains("below 50% of weight\n"), "{shown}");
    assert!(!succeed(&agent, "status").await.contains("panic"));
    succeed(&agent, &set(PANICS)).await;
    let shown = succeed(&agent, "service show 10.0.0.1:80/tcp").await;
    let panic =
        "below 99% of weight; in panic, with 25%: 3 backends that are down are used as well\n";
    assert!(shown.contains(panic), "{shown}");
    let status = succeed(&agent, "status").await;
    assert!(
        status.contains("in panic      10.0.0.1:80/tcp\n"),
        "{status}"
    );
    let json = succeed_json(&agent, "status").await;
    assert_eq!(json["panic"], json!(["10.0.0.1:80/tcp"]));
    assert!(
        status.contains("1 up, 1 down (1 of them used in panic)\n"),
        "{status}"
    );
    assert_eq!(json["backends"]["used_in_panic"], 1);
}

#[tokio::test]
async fn backends_are_forced_down_and_up_and_that_is_undone() {
    let agent = FakeAgent::start(WEB);
    for (verb, admin, part) in [
        ("down", Admin::Down, "is down until `lbctl backend undrain`"),
        ("up", Admin::Up, "is up until `lbctl backend undrain`"),
        ("maintenance", Admin::Maintenance, "is not checked"),
        ("drain", Admin::Draining, "takes no new flows"),
        ("auto", Admin::Active, "is active"),
        ("undrain", Admin::Active, "is active"),
    ] {
        let line = succeed(
            &agent,
            &format!("backend {verb} 10.0.0.1:80/tcp 10.1.0.2:80"),
        )
        .await;
        assert!(line.contains(part), "{line}");
        assert_eq!(web(&agent).backends[0].admin, admin);
    }
}

#[tokio::test]
async fn who_is_kept_out_by_something_else_is_not_said_to_take_flows_once_nobody_does() {
    let weighed = |weight| WEB.replace("weight = 3", &format!("weight = {weight}"));
    for (weight, line) in [
        (
            WEIGHT_OF_A_STANDBY,
            "is active: it takes no new flows yet, being standby: tier 1 is not needed",
        ),
        (WEIGHT_OF_ONE_THAT_IS_UP, "is active: it takes new flows"),
    ] {
        let agent = FakeAgent::start(&weighed(weight));
        let said = succeed(&agent, "backend undrain 10.0.0.1:80/tcp 10.1.0.3:81").await;
        assert!(said.contains(line), "{said}");
    }
}

#[tokio::test]
async fn a_drain_is_waited_for_and_told_in_what_is_seen_and_what_is_not() {
    let agent = FakeAgent::start(WEB);
    const DRAIN: &str = "backend drain 10.0.0.1:80/tcp 10.1.0.2:80 --wait";
    let ran = run(&agent.socket, &format!("{DRAIN} --timeout 1s")).await;
    assert_eq!(ran.code, 6, "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
    let observed = "5 flows observed; unknown: idle ones in 17 slots";
    let expected = format!(
        "{observed}\nerror: backend 10.1.0.2:80 of 10.0.0.1:80/tcp may still have flows after 1s ({observed}): it goes on draining\n"
    );
    assert_eq!(ran.stderr, expected);
    let list = succeed(&agent, "backend list 10.0.0.1:80/tcp").await;
    assert!(
        list.contains("UNKNOWN") && list.contains("17 slots"),
        "{list}"
    );
    let weight = WEIGHT_OF_A_DRAINED;
    succeed(
        &agent,
        &format!("backend weight 10.0.0.1:80/tcp 10.1.0.2:80 {weight}"),
    )
    .await;
    let list = succeed(&agent, "backend list 10.0.0.1:80/tcp").await;
    assert!(
        list.contains("  draining 5m  ") && list.contains("by hand"),
        "{list}"
    );
    let ran = run(&agent.socket, DRAIN).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, "no flow is left\n"));
    let without = run(
        &agent.socket,
        "backend drain 10.0.0.1:80/tcp 10.1.0.2:80 --timeout 1s",
    )
    .await;
    assert_eq!(without.code, 2, "{}", without.stderr);
}

#[tokio::test]
async fn events_are_lines_or_json_and_go_on_as_they_come() {
    let agent = FakeAgent::start(WEB);
    let first = "2023-11-14T22:13:20.123Z  10.0.0.1:80/tcp  10.1.0.3:81  suspect -> down: connection refused\n";
    let second = "2023-11-14T22:13:20.123Z  10.0.0.1:80/tcp  new flows: 100% to tier 1\n";
    assert_eq!(succeed(&agent, "events").await, format!("{first}{second}"));
    let of_web = succeed(&agent, "events --service 10.0.0.1:80/tcp --limit 1").await;
    assert_eq!(of_web, second);
    let json = succeed_json(&agent, "events").await;
    assert_eq!(
        (&json["last"], &json["events"][0]["to"]),
        (&json!(2), &json!("down"))
    );
    let mut child = lbctl(&agent.socket, "events --follow")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = vec![0; first.len() + second.len()];
    let mut out = child.stdout.take().unwrap();
    let read = timeout(Duration::from_secs(60), out.read_exact(&mut seen)).await;
    read.unwrap().unwrap();
    assert_eq!(String::from_utf8(seen).unwrap(), format!("{first}{second}"));
    assert!(child.try_wait().unwrap().is_none(), "it goes on");
}

/// What a program writes until there is as much as `expected`, which it is to be.
async fn reads(from: &mut (impl tokio::io::AsyncRead + Unpin), expected: &str) {
    let mut seen = vec![0; expected.len()];
    let read = timeout(Duration::from_secs(60), from.read_exact(&mut seen)).await;
    read.unwrap().unwrap();
    assert_eq!(String::from_utf8(seen).unwrap(), expected);
}

#[tokio::test]
async fn who_follows_events_or_waits_for_a_drain_goes_on_over_a_restart_of_the_agent() {
    let agent = FakeAgent::start(WEB);
    let events = succeed(&agent, "events").await;
    const DRAIN: &str = "backend drain 10.0.0.1:80/tcp 10.1.0.2:80 --wait --timeout 50s";
    let [mut follows, mut waits] = ["events --follow", DRAIN].map(|arguments| {
        lbctl(&agent.socket, arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let (mut out, mut errors) = (
        follows.stdout.take().unwrap(),
        follows.stderr.take().unwrap(),
    );
    reads(&mut out, &events).await;
    let mut progress = waits.stderr.take().unwrap();
    reads(
        &mut progress,
        "5 flows observed; unknown: idle ones in 17 slots\n",
    )
    .await;
    let away = format!("no agent answers at {}", agent.socket.display());
    let directory = agent.stop().await;
    reads(&mut errors, &away).await;
    reads(&mut progress, &away).await;
    // Of as many events as the one before, all of which are news.
    let weightless = WEB.replace(
        "max_connections = 9",
        &format!("weight = {WEIGHT_OF_A_DRAINED}, state = \"draining\""),
    );
    let _agent = FakeAgent::start_in(directory, &weightless, 2);
    reads(&mut out, &events).await;
    let ended = timeout(Duration::from_secs(60), waits.wait()).await;
    assert!(ended.unwrap().unwrap().success());
}

#[tokio::test]
async fn programs_that_follow_events_are_told_how_many_they_have_missed() {
    let agent = FakeAgent::start(WEB);
    let mut follows = lbctl(&agent.socket, "events --follow --output json")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut errors = follows.stderr.take().unwrap();
    let away = format!("no agent answers at {}", agent.socket.display());
    // It has asked by then.
    let mut line = [0];
    follows
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .await
        .unwrap();
    let directory = agent.stop().await;
    reads(&mut errors, &away).await;
    let _agent = FakeAgent::start_in(directory, WEB, EPOCH_OF_MANY);
    let missed = format!("{FORGOTTEN} events are kept no more");
    let mut told = String::new();
    let tells = async {
        while !told.contains(&missed) {
            let mut byte = [0];
            errors.read_exact(&mut byte).await.unwrap();
            told.push(byte[0].into());
        }
    };
    timeout(Duration::from_secs(60), tells).await.unwrap();
}

#[tokio::test]
async fn who_follows_events_ends_once_nobody_reads_them_any_more() {
    let agent = FakeAgent::start(WEB);
    let mut follows = lbctl(&agent.socket, "events --follow")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(follows.stdout.take());
    let ended = timeout(Duration::from_secs(60), follows.wait_with_output());
    let ended = ended.await.unwrap().unwrap();
    let errors = String::from_utf8(ended.stderr).unwrap();
    assert_eq!((ended.status.code(), errors.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn a_drain_is_waited_for_no_longer_than_said_while_no_agent_answers() {
    let agent = FakeAgent::start(WEB);
    let socket = agent.socket.clone();
    let stops = async {
        let drained = |agent: &FakeAgent| web(agent).backends[0].admin == Admin::Draining;
        while !drained(&agent) {
            tokio::task::yield_now().await;
        }
        agent.stop().await
    };
    const DRAIN: &str = "backend drain 10.0.0.1:80/tcp 10.1.0.2:80 --wait --timeout 2s";
    let (ran, _directory) = tokio::join!(run(&socket, DRAIN), stops);
    assert_eq!(ran.code, 6, "{}", ran.stderr);
}

#[tokio::test]
async fn what_pools_carry_and_can_lose_is_shown() {
    let agent = FakeAgent::start("");
    let add = format!(
        "service add 10.0.0.1:80/tcp --mode ipip \
         --backend 10.1.0.2:80,weight={WEIGHT_OF_ONE_THAT_IS_UP},max-connections=9 \
         --backend 10.1.0.3:80,weight={WEIGHT_OF_ONE_THAT_IS_UP},max-connections=7"
    );
    succeed(&agent, &add).await;
    let shown = succeed(&agent, "service show 10.0.0.1:80/tcp").await;
    let capacity = "capacity     6 of 16 flows (37.5%), imbalance 1.00, headroom 1 backends\n";
    assert!(shown.contains(capacity), "{shown}");
    let status = succeed(&agent, "status").await;
    let worst = "capacity      at most 37.5% used (10.0.0.1:80/tcp), imbalance up to 1.00 (10.0.0.1:80/tcp), \
                 headroom at least 1 backends (10.0.0.1:80/tcp)\n";
    assert!(status.contains(worst), "{status}");
    let json = succeed_json(&agent, "status").await;
    assert_eq!(json["worst"]["headroom"]["value"], 1);
}

#[tokio::test]
async fn what_pools_get_a_second_of_what_they_are_said_to_carry_is_shown() {
    let agent = FakeAgent::start("");
    let backend = |n: u8| {
        format!(
            "--backend 10.1.0.{n}:80,weight={WEIGHT_OF_ONE_THAT_IS_UP},max-flow-rate=50,max-bandwidth=4M"
        )
    };
    let add = format!(
        "service add 10.0.0.1:80/tcp --mode ipip {} {}",
        backend(2),
        backend(3)
    );
    succeed(&agent, &add).await;
    let shown = succeed(&agent, "service show 10.0.0.1:80/tcp").await;
    for part in [
        "80 of 100 new flows/s (80.0%), imbalance 1.00, headroom 0 backends\n",
        "3Mbit/s of 8Mbit/s (37.5%), imbalance 1.00, headroom 1 backends\n",
        "40 of 50",
        "1.5Mbit/s of 4Mbit/s",
    ] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let capacity = &succeed_json(&agent, "service show 10.0.0.1:80/tcp").await["capacity"];
    assert_eq!(
        (&capacity["scarcest"], &capacity["headroom"]),
        (&json!("flow_rate"), &json!(0))
    );
    let status = succeed(&agent, "status").await;
    assert!(status.contains("at most 80.0% used"), "{status}");
    let refused = run(
        &agent.socket,
        "backend capacity 10.0.0.1:80/tcp 10.1.0.2:80",
    )
    .await;
    assert_eq!(refused.code, 2, "{}", refused.stderr);
}

#[tokio::test]
async fn every_change_tells_programs_what_changed() {
    let agent = FakeAgent::start("");
    let backend = json!("10.1.0.2:80");
    for (arguments, action, of) in [
        (
            "service add 10.0.0.1:80/tcp --mode nat",
            "added",
            &Value::Null,
        ),
        ("backend add 10.0.0.1:80/tcp 10.1.0.2:80", "added", &backend),
        (
            "backend drain 10.0.0.1:80/tcp 10.1.0.2:80",
            "edited",
            &backend,
        ),
        (
            "backend undrain 10.0.0.1:80/tcp 10.1.0.2:80",
            "edited",
            &backend,
        ),
        (
            "backend weight 10.0.0.1:80/tcp 10.1.0.2:80 2",
            "edited",
            &backend,
        ),
        (
            "backend limit 10.0.0.1:80/tcp 10.1.0.2:80 2",
            "edited",
            &backend,
        ),
        (
            "service set 10.0.0.1:80/tcp --on-down resteer",
            "edited",
            &Value::Null,
        ),
        (
            "backend remove 10.0.0.1:80/tcp 10.1.0.2:80",
            "removed",
            &backend,
        ),
        ("service remove 10.0.0.1:80/tcp", "removed", &Value::Null),
    ] {
        let changed = succeed_json(&agent, arguments).await["changed"].clone();
        assert_eq!(
            (&changed["action"], &changed["backend"]),
            (&json!(action), of),
            "{arguments}"
        );
        assert_eq!(changed["service"], "10.0.0.1:80/tcp", "{arguments}");
    }
}

#[tokio::test]
async fn the_environment_names_the_socket_and_a_name_goes_before_it() {
    let agent = FakeAgent::start(WEB);
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lbctl"));
        command
            .env("LBCTL_SOCKET", &agent.socket)
            .args(arguments)
            .output()
    };
    let output = ask(&["status"]).await.unwrap();
    assert_eq!(output.status.code(), Some(0));
    let name = format!("test-{}", std::process::id());
    let output = ask(&["status", "--name", &name]).await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains(&format!("/run/lbd/{name}.sock")),
        "{stderr}"
    );
}

#[tokio::test]
async fn a_reader_that_leaves_early_is_no_failure() {
    let agent = FakeAgent::start(WEB);
    let mut command = lbctl(&agent.socket, "completions bash");
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let status = timeout(Duration::from_secs(60), child.wait())
        .await
        .unwrap()
        .unwrap();
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .await
        .unwrap();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn completions_and_help_need_no_agent() {
    let nowhere = Path::new("/nonexistent/lbd.sock");
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(nowhere, &format!("completions {shell}")).await;
        assert_eq!(ran.code, 0);
        for word in [
            "undrain",
            "limit",
            "set",
            "flows",
            "max-connections",
            "moving-time",
            "weighted-least-connections",
            "settling",
        ] {
            assert!(ran.stdout.contains(word), "{shell}: {word}");
        }
    }
    let help = run(nowhere, "--help").await;
    assert_eq!(help.code, 0);
    for code in [
        "0  done",
        "3  no agent answers",
        "4  no such service",
        "5  refused",
    ] {
        assert!(help.stdout.contains(code), "{}", help.stdout);
    }
}
