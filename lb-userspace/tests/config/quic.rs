//! QUIC services in the configuration: what is refused, and where it is said to be wrong.

use crate::{
    bad::{Bad, assert_mistake},
    read,
};

/// A QUIC service that is right, at line 1, with `quic` and `backends` in place of its own.
fn service(quic: &str, backends: &str) -> String {
    format!(
        "[[service]]\nvip = \"10.0.0.1:443/udp\"\nmode = \"ipip\"\nhealth = {{ type = \"none\" }}\n{quic}\n{backends}\n"
    )
}

const QUIC: &str = "quic = { config_id = 0, server_id_length = 2, nonce_length = 6 }";
const BACKEND: &str = "[[service.backend]]\naddress = \"10.1.0.2:443\"\nserver_id = \"0a01\"";

/// Of the table, on line 5.
const BAD_TABLES: &[Bad] = &[
    ("quic = true", 5, "service[0].quic", "expected a table"),
    (
        "quic = { config_id = 0, server_id_length = 2 }",
        5,
        "service[0].quic.nonce_length",
        "missing: write nonce_length = 6",
    ),
    (
        "quic = { config_id = 0, server_id_length = 2, nonce_length = 6, key = \"\" }",
        5,
        "service[0].quic.key",
        "unknown key: here can be config_id",
    ),
    (
        "quic = { config_id = 7, server_id_length = 2, nonce_length = 6 }",
        5,
        "service[0].quic.config_id",
        "0 to 6",
    ),
    (
        "quic = { config_id = 300, server_id_length = 2, nonce_length = 6 }",
        5,
        "service[0].quic.config_id",
        "out of range",
    ),
    (
        "quic = { config_id = 0, server_id_length = 2, nonce_length = 18 }",
        5,
        "service[0].quic.nonce_length",
        "4 to 17 bytes beside a server id of 2",
    ),
];

/// Of backends, from line 6 on.
const BAD_BACKENDS: &[Bad] = &[
    (
        "[[service.backend]]\naddress = \"10.1.0.2:443\"",
        6,
        "service[0].backend[0].server_id",
        "missing",
    ),
    (
        "[[service.backend]]\naddress = \"10.1.0.2:443\"\nserver_id = \"0a\"",
        8,
        "service[0].backend[0].server_id",
        "make them the same",
    ),
    (
        "[[service.backend]]\naddress = \"10.1.0.2:443\"\nserver_id = \"xyzt\"",
        8,
        "service[0].backend[0].server_id",
        "in hexadecimal",
    ),
    (
        "[[service.backend]]\naddress = \"10.1.0.2:443\"\nserver_id = \"0a01\"\n[[service.backend]]\naddress = \"10.1.0.3:443\"\nserver_id = \"0A01\"",
        11,
        "service[0].backend[1].server_id",
        "10.1.0.2:443",
    ),
];

#[test]
fn bad_tables_are_refused_with_line_key_and_remedy() {
    for (quic, line, key, part) in BAD_TABLES {
        assert_mistake(&service(quic, ""), *line, key, part);
    }
    let tcp = service(QUIC, "").replace("/udp", "/tcp");
    assert_mistake(&tcp, 5, "service[0].quic", "is for UDP services");
}

#[test]
fn bad_backends_are_refused_with_line_key_and_remedy() {
    for (backends, line, key, part) in BAD_BACKENDS {
        assert_mistake(&service(QUIC, backends), *line, key, part);
    }
    let key = "service[0].backend[0].server_id";
    assert_mistake(&service("", BACKEND), 8, key, "is for QUIC services");
}

#[test]
fn the_readmes_service_is_right() {
    let readme = include_str!("../../../README.md");
    let block = readme
        .split("```")
        .find(|text| text.contains("server_id_length = "));
    let config = read(block.unwrap().trim_start_matches("text\n"));
    assert!(config.services[0].quic.is_some());
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn what_counts_quic_connections_by_records_is_warned_of() {
    let warned = |text: &str| read(text).warnings;
    assert_eq!(warned(&service(QUIC, BACKEND)), [""; 0]);
    for counting in [
        service(
            &format!("scheduler = \"least-connections\"\n{QUIC}"),
            BACKEND,
        ),
        service(QUIC, &format!("{BACKEND}\nmax_connections = 9")),
    ] {
        let warnings = warned(&counting);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("connection ids"), "{warnings:?}");
    }
}
