//! The configuration format: what is read, and how mistakes are told.

mod bad;

use std::time::Duration;

use lb_userspace::{
    config::{self, Config, ConfigError},
    model::{Admin, Mode, Probe, State},
};

const GOOD: &str = r#"
name = "edge-1"
interfaces = ["eth0", "eth1"]
metrics = "127.0.0.1:9150"

[tunnel]
source_v4 = "10.255.0.0/16"
source_v6 = "fd00:ffff::/64"

[limits]
services = 10
backends = 100
ring_slots = 1000000

[[service]]
vip = "10.0.0.1:80/tcp"
mode = "ipip"
ring_size = 65537
health = { type = "http", path = "/health", host = "x", port = 8080, interval = "1s", timeout = "500ms", rise = 2, fall = 4 }
[[service.backend]]
address = "10.1.0.2:80"
weight = 3
state = "draining"
[[service.backend]]
address = "[fd00::2]:80"

[[service]]
vip = "[2001:db8::1]:443/udp"
mode = "nat"
backend = [{ address = "[fd00::3]:443" }]
health = { type = "none" }
"#;

fn read(text: &str) -> Config {
    config::parse(text, "lb.toml").unwrap_or_else(|errors| panic!("{errors:#?}"))
}

fn mistakes(text: &str) -> Vec<ConfigError> {
    match config::parse(text, "lb.toml") {
        Ok(config) => panic!("accepted: {config:#?}"),
        Err(errors) => errors,
    }
}

#[test]
fn every_key_of_the_format_is_read() {
    let config = read(GOOD);
    assert_eq!(config.name.as_deref(), Some("edge-1"));
    assert_eq!(config.interfaces, ["eth0", "eth1"]);
    assert_eq!(config.metrics, Some("127.0.0.1:9150".parse().unwrap()));
    assert_eq!(config.tunnel.source_v4, Some(([10, 255, 0, 0].into(), 16)));
    assert_eq!(
        config.tunnel.source_v6,
        Some(("fd00:ffff::".parse().unwrap(), 64))
    );
    assert_eq!(
        (
            config.limits.services,
            config.limits.backends,
            config.limits.ring_slots
        ),
        (10, 100, 1_000_000)
    );
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);

    let [first, second] = &config.services[..] else {
        panic!("{:#?}", config.services);
    };
    assert_eq!((first.mode, first.ring_size), (Mode::Ipip, Some(65_537)));
    let http = Probe::Http {
        path: "/health".to_owned(),
        host: Some("x".to_owned()),
    };
    assert_eq!(first.health.probe, http);
    assert_eq!(
        (first.health.port, first.health.rise, first.health.fall),
        (Some(8080), 2, 4)
    );
    assert_eq!(first.health.interval, Duration::from_secs(1));
    assert_eq!(first.health.timeout, Duration::from_millis(500));
    assert_eq!(
        (first.backends[0].weight, first.backends[0].admin),
        (3, Admin::Draining)
    );
    assert_eq!(
        (first.backends[1].weight, first.backends[1].admin),
        (1, Admin::Active)
    );
    assert_eq!(
        (second.mode, &second.health.probe),
        (Mode::Nat, &Probe::None)
    );
}

#[test]
fn what_is_accepted_is_a_valid_state() {
    let config = read(GOOD);
    assert_eq!(State::new(config.services).unwrap().services().len(), 2);
}

#[test]
fn an_empty_file_is_a_configuration() {
    assert_eq!(read(""), Config::default());
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let errors = mistakes(
        r#"nmae = "x"
interfaces = ["a/b"]
[[service]]
vip = "10.0.0.1:80"
mode = "dsr"
[[service.backend]]
address = "10.1.0.2"
wieght = 1
[[service]]
vip = "10.0.0.2:80/tcp"
mode = "nat"
health = { type = "tcp", interval = "1s", timeout = "2s" }
[[service.backend]]
address = "10.0.0.2:80"
"#,
    );
    let found: Vec<_> = errors.iter().map(|e| (e.line, e.key.as_str())).collect();
    let expected = [
        (1, "nmae"),
        (2, "interfaces"),
        (4, "service[0].vip"),
        (5, "service[0].mode"),
        (7, "service[0].backend[0].address"),
        (8, "service[0].backend[0].wieght"),
        (12, "service[1].health.timeout"),
        (14, "service[1].backend[0].address"),
    ];
    assert_eq!(found, expected, "{errors:#?}");
}

#[test]
fn a_mistake_reads_as_file_line_column_key_and_remedy() {
    let errors = mistakes("\n  nmae = \"x\"\n");
    assert_eq!(
        errors[0].to_string(),
        "lb.toml:2:3: nmae: unknown key: did you mean `name`?"
    );
}

#[test]
fn columns_count_characters_and_not_bytes() {
    let errors = mistakes("interfaces = [\"ä\", \"a/b\"]");
    assert_eq!((errors[0].line, errors[0].column), (1, 20));
}

#[test]
fn what_is_probably_not_meant_is_a_warning_with_its_line() {
    for (rest, part) in [
        ("", "has no backends"),
        (
            "backend = [{ address = \"10.1.0.2:80\", weight = 0 }]",
            "all weights are 0",
        ),
    ] {
        let warnings = read(&bad::below_service(rest)).warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].starts_with("lb.toml:1: service 10.0.0.1:80/tcp: "),
            "{warnings:?}"
        );
        assert!(warnings[0].contains(part), "{warnings:?}");
    }
}

#[test]
fn a_udp_service_checked_by_tcp_on_its_own_port_is_a_warning() {
    let text = |health: &str| {
        format!(
            "[[service]]\nvip = \"10.0.0.1:53/udp\"\nmode = \"nat\"\nbackend = [{{ address = \"10.1.0.2:53\" }}]\n{health}"
        )
    };
    assert!(read(&text("")).warnings[0].contains("set health.port"));
    for health in [
        "health = { type = \"tcp\", port = 80 }",
        "health = { type = \"none\" }",
    ] {
        assert_eq!(read(&text(health)).warnings, Vec::<String>::new());
    }
}

#[test]
fn any_truncation_of_a_file_is_read_or_refused_and_never_panics() {
    for (end, _) in GOOD.char_indices() {
        let _ = config::parse(&GOOD[..end], "lb.toml");
    }
}
