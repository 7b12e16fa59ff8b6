//! What makes checks valid, and how they are written.

use std::{path::PathBuf, time::Duration};

use super::*;
use crate::model::{
    Agent, Check, Combine, Dns, Exec, Grpc, Health, Http, MAX_CHECKS, Probe, Statuses, Tls,
    Transport, Udp,
};

fn check(probe: Probe) -> Check {
    Check::new(probe)
}

fn http(change: impl FnOnce(&mut Http)) -> Probe {
    let mut http = Http::default();
    change(&mut http);
    Probe::Http(http)
}

fn tls(tls: Tls) -> Probe {
    Probe::Grpc(Grpc {
        tls: Some(tls),
        ..Grpc::default()
    })
}

fn dns(query: &str, record: &str) -> Probe {
    Probe::Dns(Dns {
        query: query.to_owned(),
        record: record.to_owned(),
        answer: None,
        transport: Transport::Udp,
    })
}

fn exec(command: &[&str]) -> Probe {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    Probe::Exec(Exec { command })
}

#[track_caller]
fn assert_wrong(check: &Check, field: &str, part: &str) {
    let wrong = check.check().unwrap_err();
    assert_eq!(wrong.field, field, "{check:?}");
    assert!(wrong.problem.contains(part), "{wrong:?}");
}

#[test]
fn rhythm_and_thresholds_out_of_range_are_refused() {
    let ms = Duration::from_millis;
    let tcp = || check(Probe::TCP);
    for (check, field, part) in [
        (
            Check {
                interval: ms(9),
                ..tcp()
            },
            "interval",
            "10 ms to 1 hour",
        ),
        (
            Check {
                interval: ms(3_600_001),
                ..tcp()
            },
            "interval",
            "10 ms to 1 hour",
        ),
        (
            Check {
                timeout: ms(0),
                ..tcp()
            },
            "timeout",
            "1 ms to the interval",
        ),
        (
            Check {
                timeout: ms(1_001),
                ..tcp()
            },
            "timeout",
            "1 ms to the interval",
        ),
        (
            Check {
                fast_interval: Some(ms(9)),
                ..tcp()
            },
            "fast_interval",
            "10 ms to",
        ),
        (
            Check {
                fast_interval: Some(ms(1_001)),
                ..tcp()
            },
            "fast_interval",
            "the interval, 1s",
        ),
        (
            Check {
                jitter: ms(501),
                ..tcp()
            },
            "jitter",
            "0 s to half",
        ),
        (
            Check {
                jitter: ms(101),
                fast_interval: Some(ms(200)),
                ..tcp()
            },
            "jitter",
            "shortest interval, 100ms",
        ),
        (Check { rise: 0, ..tcp() }, "rise", "1 to 100"),
        (Check { fall: 101, ..tcp() }, "fall", "1 to 100"),
        (
            Check {
                port: Some(0),
                ..tcp()
            },
            "port",
            "1 to 65535",
        ),
        (
            Check {
                name: Some("Web".to_owned()),
                ..tcp()
            },
            "name",
            "a-z",
        ),
        (
            Check {
                name: Some(String::new()),
                ..tcp()
            },
            "name",
            "1 to 32",
        ),
    ] {
        assert_wrong(&check, field, part);
    }
}

#[test]
fn questions_that_cannot_be_put_are_refused() {
    let text = |text: &str| text.to_owned();
    let named = |name: &str| Tls {
        server_name: Some(text(name)),
        ..Tls::default()
    };
    let udp = |payload: &str, expect: Option<&str>| {
        Probe::Udp(Udp {
            payload: text(payload),
            expect: expect.map(text),
        })
    };
    for (probe, field, part) in [
        (http(|http| http.path = text("x")), "path", "start with /"),
        (http(|http| http.path = text("/\r\n")), "path", "no blanks"),
        (
            http(|http| http.host = Some(text(""))),
            "host",
            "not a host name",
        ),
        (http(|http| http.status.clear()), "status", "no status"),
        (
            http(|http| http.body = Some(text("("))),
            "body",
            "not a regular expression: unclosed",
        ),
        (
            http(|http| http.body = Some(text("a{9999}{9999}"))),
            "body",
            "",
        ),
        (
            http(|http| drop(http.headers.insert(text("a b"), text("")))),
            "headers",
            "`a b`",
        ),
        (
            http(|http| drop(http.headers.insert(text("a"), text("\n")))),
            "headers",
            "value",
        ),
        (
            http(|http| drop(http.headers.insert(text("Host"), text("x")))),
            "headers",
            "`host`",
        ),
        (
            http(|http| drop(http.expect_headers.insert(text("a"), text("[")))),
            "expect_headers",
            "not a regular expression",
        ),
        (
            http(|http| http.tls = Some(Tls::default())),
            "tls",
            "\"https\"",
        ),
        (tls(named("a b")), "tls.server_name", "not a host name"),
        (
            tls(Tls {
                ca: Some(PathBuf::from("ca.pem")),
                ..Tls::default()
            }),
            "tls.ca",
            "absolute",
        ),
        (
            tls(Tls {
                ca: Some(PathBuf::from("/ca.pem")),
                insecure: true,
                ..Tls::default()
            }),
            "tls.insecure",
            "leave one out",
        ),
        (udp("hex:0", None), "payload", "hex:00ff"),
        (udp("hex:zz", None), "payload", "hex:00ff"),
        (udp(&"x".repeat(1_401), None), "payload", "at most 1400"),
        (udp("", Some("*")), "expect", "not a regular expression"),
        (dns("", "A"), "query", "not a domain name"),
        (dns("a..b", "A"), "query", "not a domain name"),
        (dns("example.org", "AAA"), "record", "use A, AAAA"),
        (exec(&[]), "command", "is empty"),
        (exec(&["check"]), "command", "absolute path"),
        (exec(&["/check", "\0"]), "command", "zero byte"),
        (Probe::Agent(Agent::default()), "port", "port = 9777"),
    ] {
        assert_wrong(&check(probe), field, part);
    }
}

#[test]
fn checks_that_ask_no_port_have_none() {
    for probe in [Probe::Icmp {}, Probe::Heartbeat {}, Probe::NONE] {
        let check = Check {
            port: Some(80),
            ..check(probe)
        };
        assert_wrong(&check, "port", "leave it out");
    }
}

#[track_caller]
fn assert_refused(checks: Vec<Check>, part: &str) {
    let mut service = service("10.0.0.1:80/tcp", Mode::Nat, &["10.1.0.2:80"]);
    service.health = Health {
        combine: Combine::All,
        checks,
    };
    let error = State::new([service]).unwrap_err();
    assert!(error.to_string().contains(part), "{error}");
}

#[test]
fn checks_that_do_not_go_together_are_refused() {
    let agent = || Check {
        port: Some(9_777),
        ..check(Probe::Agent(Agent::default()))
    };
    let named = |name: &str| Check {
        name: Some(name.to_owned()),
        ..check(Probe::TCP)
    };
    assert_refused(Vec::new(), "0 are out of range");
    assert_refused(
        vec![check(Probe::TCP); MAX_CHECKS + 1],
        "9 are out of range: 1 to 8",
    );
    assert_refused(vec![check(Probe::TCP), check(Probe::NONE)], "stands alone");
    assert_refused(vec![named("a"), named("a")], "two are called `a`");
    assert_refused(vec![agent(), agent()], "two are of type \"agent\"");
    assert_refused(
        vec![check(Probe::Heartbeat {}); 2],
        "two are of type \"heartbeat\"",
    );
    let bad = Check {
        rise: 0,
        ..named("web")
    };
    assert_refused(
        vec![bad],
        "service 10.0.0.1:80/tcp: check web: rise: 0 is out of range",
    );
}

#[test]
fn checks_without_a_name_are_called_by_their_type_and_number() {
    let named = Check {
        name: Some("admin".to_owned()),
        ..check(Probe::TCP)
    };
    let health = Health {
        combine: Combine::All,
        checks: vec![
            check(Probe::TCP),
            named,
            check(Probe::Icmp {}),
            check(Probe::TCP),
        ],
    };
    assert_eq!(health.names(), ["tcp", "admin", "icmp", "tcp-3"]);
}

#[test]
fn statuses_are_read_and_written() {
    for text in ["200", "200-399"] {
        assert_eq!(text.parse::<Statuses>().unwrap().to_string(), text);
    }
    for text in ["", "2xx", "99", "600", "300-200", "200-", "1-2-3"] {
        assert!(text.parse::<Statuses>().is_err(), "{text}");
    }
}

#[test]
fn payloads_are_text_or_hexadecimal() {
    let udp = |payload: &str| Udp {
        payload: payload.to_owned(),
        expect: None,
    };
    assert_eq!(udp("ping").bytes().unwrap(), b"ping");
    assert_eq!(udp("hex:00fFa0").bytes().unwrap(), [0, 255, 160]);
    assert_eq!(udp("hex:").bytes().unwrap(), b"");
}

#[test]
fn every_kind_of_check_survives_json_and_refuses_what_it_does_not_know() {
    let kinds = [
        Probe::NONE,
        Probe::TCP,
        http(|http| http.body = Some("ok".to_owned())),
        Probe::Https(Http::default()),
        Probe::Udp(Udp::default()),
        dns("example.org", "SOA"),
        Probe::Icmp {},
        Probe::Vip {},
        tls(Tls::default()),
        exec(&["/check"]),
        Probe::Heartbeat {},
        Probe::Agent(Agent::default()),
    ];
    for probe in kinds {
        let full = Check {
            name: Some("x".to_owned()),
            port: Some(1),
            fast_interval: Some(Duration::from_millis(100)),
            jitter: Duration::from_millis(50),
            ..check(probe)
        };
        let mut json = serde_json::to_value(&full).unwrap();
        assert_eq!(serde_json::from_value::<Check>(json.clone()).unwrap(), full);
        json["colour"] = "red".into();
        let error = serde_json::from_value::<Check>(json).unwrap_err();
        assert!(error.to_string().contains("colour"), "{full:?}: {error}");
    }
}

#[test]
fn a_check_of_the_vip_is_for_modes_in_which_backends_answer_directly() {
    let with = |id: &str, mode, backend: &str| {
        let mut service = service(id, mode, &[backend]);
        service.health = check(Probe::Vip {}).into();
        State::new([service]).map(drop).map_err(|e| e.to_string())
    };
    let tcp = "10.0.0.1:80/tcp";
    for mode in [Mode::Ipip, Mode::Gue, Mode::L2] {
        for id in [tcp, "[fd00::1]:80/tcp"] {
            for backend in ["10.1.0.2:80", "[fd00::2]:80"] {
                assert_eq!(with(id, mode, backend), Ok(()), "{id} {mode:?}");
            }
        }
    }
    for id in ["10.0.0.1:80/udp", "10.0.0.1:*/tcp", "10.0.0.0/28:80/tcp"] {
        assert_eq!(with(id, Mode::Ipip, "10.1.0.2:80"), Ok(()), "{id}");
    }
    let with_port = |id: &str, port| {
        let mut service = service(id, Mode::Ipip, &["10.1.0.2:80"]);
        service.health = Check {
            port: Some(port),
            ..check(Probe::Vip {})
        }
        .into();
        State::new([service]).map(drop).map_err(|e| e.to_string())
    };
    for (id, port) in [("10.0.0.1:*/tcp", 80), ("10.0.0.1:8000-8999/tcp", 8_080)] {
        assert_eq!(with_port(id, port), Ok(()), "{id}");
    }
    for (wrong, part) in [
        (
            with(tcp, Mode::Nat, "10.1.0.2:80"),
            "in mode nat they get packets to their own addresses",
        ),
        (with_port(tcp, 81), "which port 81 is not: leave `port` out"),
        (
            with_port("10.0.0.1:8000-8999/tcp", 80),
            "which port 80 is not",
        ),
    ] {
        let error = wrong.unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}
