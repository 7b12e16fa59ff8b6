//! Checks that are right, in every kind and with every key.

use std::time::Duration;

use lb_userspace::{
    config::parse_check,
    model::{
        Check, Combine, Dns, Health, Http, Method, Phi, Probe, Tls, Transport, Udp, Unreachable,
    },
};

use crate::{bad::below_service, read};

const EVERY: &str = r#"
combine = "any"
checks = [
  { type = "tcp", name = "port", port = 8080, interval = "2s", fast_interval = "200ms", timeout = "1s", jitter = "50ms", rise = 4, fall = 5 },
  { type = "https", path = "/live", host = "app.example", method = "OPTIONS", status = ["200", "410-420"], body = "^ok", headers = { X-Token = "secret" }, expect_headers = { x-role = "primary" }, tls = { server_name = "other.example", ca = "/etc/ca.pem" } },
  { type = "udp", payload = "ping", expect = "^pong" },
  { type = "dns", query = "example.org", record = "AAAA", answer = "2001:db8::1", transport = "tcp" },
  { type = "icmp", detector = "phi", phi_threshold = 12, phi_window = 50, phi_min_std_dev = "5ms" },
  { type = "grpc", service = "web", tls = { insecure = true } },
  { type = "exec", command = ["/bin/check", "a b"] },
  { type = "agent", port = 9777, send = "web\n", unreachable = "fail" },
]
"#;

fn health(text: &str) -> Health {
    read(&below_service(text)).services.remove(0).health
}

#[test]
fn every_kind_of_check_and_every_key_of_one_is_read() {
    let health = health(EVERY);
    assert_eq!(health.combine, Combine::Any);
    let [port, https, udp, dns, icmp, grpc, exec, agent] = &health.checks[..] else {
        panic!("{health:#?}");
    };
    let ms = Duration::from_millis;
    let expected = Check {
        name: Some("port".to_owned()),
        port: Some(8080),
        interval: ms(2_000),
        fast_interval: Some(ms(200)),
        timeout: ms(1_000),
        jitter: ms(50),
        rise: 4,
        fall: 5,
        ..Check::new(Probe::TCP)
    };
    assert_eq!(*port, expected);
    let text = str::to_owned;
    let pair = |name, value| [(text(name), text(value))].into();
    let expected = Http {
        path: text("/live"),
        host: Some(text("app.example")),
        method: Method::Options,
        status: vec!["200".parse().unwrap(), "410-420".parse().unwrap()],
        body: Some(text("^ok")),
        headers: pair("X-Token", "secret"),
        expect_headers: pair("x-role", "primary"),
        tls: Some(Tls {
            server_name: Some(text("other.example")),
            ca: Some("/etc/ca.pem".into()),
            insecure: false,
        }),
    };
    assert_eq!(https.probe, Probe::Https(expected));
    let expected = Udp {
        payload: text("ping"),
        expect: Some(text("^pong")),
    };
    assert_eq!(udp.probe, Probe::Udp(expected));
    let expected = Dns {
        query: text("example.org"),
        record: text("AAAA"),
        answer: Some(text("2001:db8::1")),
        transport: Transport::Tcp,
    };
    assert_eq!(dns.probe, Probe::Dns(expected));
    assert_eq!(icmp.probe, Probe::Icmp {});
    let phi = Phi {
        threshold: 12,
        window: 50,
        min_std_dev: ms(5),
    };
    assert_eq!((icmp.phi(), port.phi()), (Some(phi), None));
    let Probe::Grpc(grpc) = &grpc.probe else {
        panic!("{grpc:?}");
    };
    assert_eq!(grpc.service, "web");
    assert!(grpc.tls.as_ref().is_some_and(|tls| tls.insecure));
    let Probe::Exec(exec) = &exec.probe else {
        panic!("{exec:?}");
    };
    assert_eq!(exec.command, ["/bin/check", "a b"]);
    let Probe::Agent(asked) = &agent.probe else {
        panic!("{agent:?}");
    };
    assert_eq!(asked.send.as_deref(), Some("web\n"));
    assert_eq!(
        (asked.unreachable, agent.port),
        (Unreachable::Fail, Some(9_777))
    );
}

#[test]
fn a_check_by_itself_reads_as_it_does_in_a_file_and_names_every_mistake() {
    let check = parse_check("{ type = \"dns\", query = \"example.org\" }").unwrap();
    let in_file = health("health = { type = \"dns\", query = \"example.org\" }");
    assert_eq!(in_file.checks, [check]);
    let error = parse_check("{ type = \"tcp\", path = \"/\", rise = 0 }").unwrap_err();
    assert!(error.contains("path") && error.contains("rise"), "{error}");
    for text in ["tcp", "{ type = ", "7"] {
        assert!(parse_check(text).is_err(), "{text}");
    }
}

#[test]
fn checks_that_are_probably_not_meant_are_warned_of() {
    let backend = "backend = [{ address = \"10.1.0.2:80\" }]";
    for (checks, part) in [
        (
            "health = { type = \"https\", tls = { insecure = true } }",
            "check \"https\" takes any certificate",
        ),
        (
            "health = { type = \"agent\", port = 9777 }",
            "set unreachable = \"fail\"",
        ),
    ] {
        let warnings = read(&below_service(&format!("{checks}\n{backend}"))).warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains(part), "{warnings:?}");
    }
    for checks in [
        "health = { type = \"https\" }",
        "health = { type = \"agent\", port = 9777, unreachable = \"fail\" }",
        "checks = [{ type = \"agent\", port = 9777 }, { type = \"tcp\" }]",
    ] {
        let warnings = read(&below_service(&format!("{checks}\n{backend}"))).warnings;
        assert_eq!(warnings, Vec::<String>::new());
    }
}

#[test]
fn a_check_of_the_vip_is_read_where_there_is_a_tunnel() {
    let text = below_service("health = { type = \"vip\", interval = \"2s\" }");
    let text = text.replace("mode = \"nat\"", "mode = \"ipip\"");
    let health = read(&text).services.remove(0).health;
    assert_eq!(health.checks[0].probe, Probe::Vip {});
}
