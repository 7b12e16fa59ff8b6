//! `lbctl` and checks: how they are given, shown and reported to.

use lb_userspace::model::{Combine, Probe};
use serde_json::json;

use crate::{succeed, succeed_json, support::FakeAgent, web};

/// The first backend passes both checks, the second fails the first; its agent asks for something.
const SEVERAL: &str = r#"
[[service]]
vip = "10.0.0.1:80/tcp"
mode = "nat"
combine = "all"
checks = [
  { type = "https", name = "web", path = "/live", host = "app.example", fast_interval = "200ms", jitter = "20ms" },
  { type = "exec", command = ["/bin/check", "disk"], interval = "10s" },
]
backend = [{ address = "10.1.0.2:80" }, { address = "10.1.0.3:81", weight = 77 }]
"#;

#[tokio::test]
async fn service_show_lists_each_check_and_what_it_says_of_each_backend() {
    let agent = FakeAgent::start(SEVERAL);
    let shown = succeed(&agent, "service show 10.0.0.1:80/tcp").await;
    for line in [
        "combine      all",
        "check        web: https /live on app.example every 1000 ms (200 ms in doubt), timeout 500 ms, rise 2, fall 3, jitter 20 ms",
        "check        exec /bin/check disk every 10000 ms, timeout 500 ms, rise 2, fall 3",
        "BACKEND      CHECK  CONDITION  PASSED  FAILED  UNDECIDED  LATENCY  LAST ERROR",
        "10.1.0.2:80  web    up             20       0          0    250µs  -",
        "10.1.0.3:81  web    down           20       3          0        -  connection refused",
        "10.1.0.3:81  exec   up             20       0          0    250µs  -",
    ] {
        assert!(shown.lines().any(|own| own == line), "{line}\n{shown}");
    }
    let listed = succeed(&agent, "service list").await;
    assert!(listed.contains("https and exec"), "{listed}");
}

#[tokio::test]
async fn what_a_backends_agent_asks_for_is_shown_beside_what_a_person_wants() {
    let agent = FakeAgent::start(SEVERAL);
    let listed = succeed(&agent, "backend list 10.0.0.1:80/tcp").await;
    assert!(listed.contains("77 (agent: 50%)"), "{listed}");
    assert!(listed.contains("active (agent: drain)"), "{listed}");
    let json = succeed_json(&agent, "backend list 10.0.0.1:80/tcp").await;
    assert_eq!(json[0].get("asked"), None);
    assert_eq!(
        json[1]["asked"],
        json!({"weight_percent": 50, "wants": "drain"})
    );
    assert_eq!(json[1]["checks"][0]["condition"], "down");
}

#[tokio::test]
async fn checks_are_given_as_in_the_configuration_or_by_options_of_their_own() {
    let agent = FakeAgent::start("");
    let several = "service add 10.0.0.1:80/tcp --mode nat --combine any \
        --check {type=\"dns\",query=\"example.org\"} --check {type=\"tcp\",port=8080}";
    succeed(&agent, several).await;
    let health = web(&agent).health;
    assert_eq!(health.combine, Combine::Any);
    assert_eq!(health.names(), ["dns", "tcp"]);
    assert_eq!(health.checks[1].port, Some(8080));
    succeed(&agent, "service remove 10.0.0.1:80/tcp").await;
    let single = "service add 10.0.0.1:80/tcp --mode nat --health https --health-path /live";
    succeed(&agent, single).await;
    let Probe::Https(https) = &web(&agent).health.checks[0].probe else {
        panic!("{:?}", web(&agent).health);
    };
    assert_eq!(https.path, "/live");
}

#[tokio::test]
async fn a_drained_backend_is_reported_in_one_line() {
    let agent = FakeAgent::start(SEVERAL);
    succeed(&agent, "backend drain 10.0.0.1:80/tcp 10.1.0.2:80").await;
    let command = "backend drained 10.0.0.1:80/tcp 10.1.0.2:80";
    let line = succeed(&agent, command).await;
    let said = "reported that backend 10.1.0.2:80 of 10.0.0.1:80/tcp has no flow left\n";
    assert_eq!(line, said);
    let json = succeed_json(&agent, command).await;
    let heard = json!({"service": "10.0.0.1:80/tcp", "backend": "10.1.0.2:80"});
    assert_eq!(json, heard);
}

#[tokio::test]
async fn a_heartbeat_is_reported_in_one_line() {
    let agent = FakeAgent::start(SEVERAL);
    let command = "backend heartbeat 10.0.0.1:80/tcp 10.1.0.2:80";
    let line = succeed(&agent, command).await;
    assert_eq!(line, "reported backend 10.1.0.2:80 of 10.0.0.1:80/tcp\n");
    let json = succeed_json(&agent, command).await;
    let heard = json!({"service": "10.0.0.1:80/tcp", "backend": "10.1.0.2:80"});
    assert_eq!(json, heard);
}
