//! Access lists and limits in the configuration, and the files that it names.

use lb_userspace::{
    config::{self, Config, ConfigError, NamedFile},
    model::{Access, FlowLimit},
};

fn read(text: &str) -> Result<Config, Vec<ConfigError>> {
    let file = |text: &str, mode| {
        let text = text.to_owned();
        Ok(NamedFile { text, mode })
    };
    config::parse_with(text, "lb.toml", &|name| match name {
        "scanners.txt" => file("# seen in May\n192.0.2.0/24\n2001:db8::/32\n", 0o100_644),
        "bad.txt" => file("192.0.2.0/24\n\nnone\n", 0o100_644),
        "open.key" => file(&"0123456789abcdef".repeat(12), 0o100_644),
        "hash.key" => file(&"0123456789abcdef".repeat(12), 0o100_600),
        _ => Err("No such file or directory".to_owned()),
    })
}

#[test]
fn a_hash_key_that_others_can_read_is_refused_and_prefixes_are_not() {
    let config = read("hash_key_file = \"hash.key\"").expect("a key that only its owner reads");
    assert!(config.hash_key.is_some());
    let errors = read("hash_key_file = \"open.key\"").expect_err("a key that all read");
    let [error] = &errors[..] else {
        panic!("{errors:?}");
    };
    assert!(error.to_string().contains("chmod 600 open.key"), "{error}");
}

fn service(settings: &str) -> String {
    format!(
        "[[service]]\nvip = \"10.0.0.1:80/tcp\"\nmode = \"ipip\"\nhealth = {{ type = \"none\" }}\n{settings}\nbackend = [{{ address = \"10.1.0.2:80\" }}]\n"
    )
}

#[test]
fn lists_are_read_from_the_configuration_and_from_files() {
    let lists = "[[access_list]]\nname = \"office\"\nallow = [\"10.0.0.0/8\", \"fd00::1\"]\ndeny = [\"10.1.0.0/16\"]\ndeny_file = \"scanners.txt\"\n";
    let settings = "access_list = \"office\"\nflow_limit = 1000\nsource_limit = \"10,burst=50\"\nsource_prefix_v4 = 24\nsource_prefix_v6 = 56";
    let config = read(&format!("{lists}{}", service(settings))).expect("what is valid");
    let [office] = &config.access_lists[..] else {
        panic!("{:?}", config.access_lists);
    };
    let of = |access| {
        office
            .prefixes(access)
            .map(|p| p.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(of(Access::Allow), ["10.0.0.0/8", "fd00::1/128"]);
    assert_eq!(
        of(Access::Deny),
        ["10.1.0.0/16", "192.0.2.0/24", "2001:db8::/32"]
    );
    let service = &config.services[0];
    assert_eq!(service.access_list.as_deref(), Some("office"));
    assert_eq!(
        service.flow_limit,
        FlowLimit::To {
            rate: 1_000,
            burst: 1_000
        }
    );
    assert_eq!(
        service.source_limit,
        FlowLimit::To {
            rate: 10,
            burst: 50
        }
    );
    assert_eq!(
        (service.source_prefix_v4, service.source_prefix_v6),
        (Some(24), Some(56))
    );
}

#[test]
fn mistakes_in_lists_are_told_where_they_are() {
    let list = |rest: &str| format!("[[access_list]]\nname = \"office\"\n{rest}\n");
    let twice = format!("{}{}", list(""), list(""));
    for (text, line, key, part) in [
        (
            list("allow = [\"10.0.0.1/8\"]"),
            3,
            "access_list[0].allow",
            "write 10.0.0.0/8",
        ),
        (
            list("allow = \"10.0.0.0/8\""),
            3,
            "access_list[0].allow",
            "an array of strings",
        ),
        (
            list("allow_file = \"none.txt\""),
            3,
            "access_list[0].allow_file",
            "cannot read none.txt: No such file",
        ),
        (
            list("deny_file = \"bad.txt\""),
            3,
            "access_list[0].deny_file",
            "bad.txt:3: `none` is not a prefix",
        ),
        (
            list("file = \"bad.txt\""),
            3,
            "access_list[0].file",
            "unknown key",
        ),
        (
            list("allow = [\"10.0.0.0/8\"]\ndeny = [\"10.0.0.0/8\"]"),
            1,
            "access_list[0]",
            "10.0.0.0/8 is both allowed and denied",
        ),
        (
            "[[access_list]]\n".to_owned(),
            1,
            "access_list[0].name",
            "missing: write name",
        ),
        (
            "[[access_list]]\nname = \"an office\"\n".to_owned(),
            2,
            "access_list[0].name",
            "not a list's name",
        ),
        (twice, 5, "access_list[1].name", "is on line 2 already"),
        (
            service("access_list = \"office\""),
            5,
            "service[0].access_list",
            "write an [[access_list]] of that name",
        ),
        (
            service("flow_limit = 0"),
            5,
            "service[0].flow_limit",
            "1 to 1000000000 flows a second",
        ),
        (
            service("source_limit = \"10,20\""),
            5,
            "service[0].source_limit",
            "1000,burst=2000",
        ),
        (
            service("source_prefix_v4 = 33"),
            5,
            "service[0].source_prefix_v4",
            "1 to 32",
        ),
        (
            "[limits]\naccess_prefixes = 0\n".to_owned(),
            2,
            "limits.access_prefixes",
            "1 to",
        ),
    ] {
        let errors = read(&text).expect_err(&text);
        let [error] = &errors[..] else {
            panic!("{text}\n{errors:?}");
        };
        assert_eq!((error.line, error.key.as_str()), (line, key), "{error}");
        assert!(error.problem.contains(part), "{error}");
    }
}
