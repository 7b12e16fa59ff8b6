//! Source routes and subsets in the configuration.

use crate::{bad::assert_mistake, mistakes, read};

/// A service with these settings, and backends of these.
fn service(settings: &str, backends: &[&str]) -> String {
    let backends: String = (2..)
        .zip(backends)
        .map(|(n, more)| format!("[[service.backend]]\naddress = \"10.1.0.{n}:80\"\n{more}\n"))
        .collect();
    format!(
        "[[service]]\nvip = \"10.0.0.1:80/tcp\"\nmode = \"ipip\"\n{settings}\n[[service.source_route]]\nprefixes = [\"192.0.2.0/24\", \"2001:db8::/32\"]\nsubset = \"canary\"\n[[service.source_route]]\nprefixes = [\"192.0.2.9\"]\nsubset = \"default\"\n{backends}"
    )
}

#[test]
fn routes_and_subsets_are_read() {
    let config = read(&service(
        "",
        &[
            "",
            "subsets = [\"canary\"]",
            "subsets = [\"default\", \"canary\"]",
        ],
    ));
    assert_eq!(config.warnings, Vec::<String>::new());
    let service = &config.services[0];
    let routes: Vec<String> = (service.source_routes.iter())
        .map(|(prefix, subset)| format!("{prefix}={subset}"))
        .collect();
    assert_eq!(
        routes,
        [
            "192.0.2.0/24=canary",
            "192.0.2.9/32=default",
            "2001:db8::/32=canary"
        ]
    );
    let subsets = service.subsets();
    let served: Vec<u16> = (service.backends.iter())
        .map(|backend| subsets.served_by(backend))
        .collect();
    assert_eq!(served, [0b01, 0b10, 0b11]);
}

#[test]
fn what_is_probably_not_meant_is_warned_of() {
    let warnings = |backends: &[&str]| read(&service("", backends)).warnings;
    for (backends, part) in [
        (
            &["", ""][..],
            "no backend is of subset canary: its clients go to those of the default one",
        ),
        (
            &["subsets = [\"canary\"]"],
            "no backend is of subset default: its clients go to all backends",
        ),
        (
            &["", "subsets = [\"canary\", \"canry\"]"],
            "no source_route leads to subset canry",
        ),
    ] {
        let warnings = warnings(backends);
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
        assert!(warnings[0].contains(part), "{warnings:#?}");
    }
}

#[test]
fn mistakes_in_routes_are_named_where_they_are() {
    let below = |route: &str| {
        format!(
            "[[service]]\nvip = \"10.0.0.1:80/tcp\"\nmode = \"ipip\"\n[[service.source_route]]\n{route}"
        )
    };
    for (route, line, key, part) in [
        (
            "prefixes = [\"10.1.0.1/16\"]\nsubset = \"a\"",
            5,
            "service[0].source_route[0].prefixes",
            "has bits set beyond /16: write 10.1.0.0/16",
        ),
        (
            "prefixes = []\nsubset = \"a\"",
            5,
            "service[0].source_route[0].prefixes",
            "names none: write prefixes = [\"10.1.0.0/16\"]",
        ),
        (
            "prefixes = [\"10.1.0.0/16\"]",
            4,
            "service[0].source_route[0].subset",
            "missing: write subset = \"canary\"",
        ),
        (
            "prefixes = [\"10.1.0.0/16\"]\nsubset = \"a b\"",
            6,
            "service[0].source_route[0].subset",
            "is not a subset's name",
        ),
        (
            "prefixes = [\"10.1.0.0/16\"]\nsubset = \"a\"\n[[service.source_route]]\nprefixes = [\"10.1.0.0/16\"]\nsubset = \"b\"",
            8,
            "service[0].source_route[1].prefixes",
            "10.1.0.0/16 goes to a already",
        ),
        (
            "prefix = [\"10.1.0.0/16\"]\nprefixes = [\"10.1.0.0/16\"]\nsubset = \"a\"",
            5,
            "service[0].source_route[0].prefix",
            "did you mean `prefixes`?",
        ),
    ] {
        assert_mistake(&below(route), line, key, part);
    }
}

#[test]
fn what_has_no_subsets_is_refused_with_what_has() {
    let errors = mistakes(&service("scheduler = \"round-robin\"", &["", ""]));
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert_eq!(errors[0].key, "service[0].source_route");
    assert!(errors[0].problem.contains("use maglev"), "{errors:#?}");
    let errors = mistakes(
        "[[service]]\nvip = \"10.0.0.1:80/tcp\"\nmode = \"gue\"\nsecond_hop = true\nbackend = [{ address = \"10.1.0.2:80\", subsets = [\"a\"] }]\n",
    );
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert_eq!(errors[0].key, "service[0].subsets");
    let errors = mistakes(
        "[[service]]\nvip = \"10.0.0.1:80/tcp\"\nmode = \"gue\"\nbackend = [{ address = \"10.1.0.2:80\", subsets = [\"a\", \"b c\", \"a\"] }]\n",
    );
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].problem.contains("`b c` is not a subset's name"));
}
