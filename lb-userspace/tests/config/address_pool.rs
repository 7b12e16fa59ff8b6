//! `[[address_pool]]`, and services of mode `full-nat`.

use lb_userspace::model::{ClientAddress, Mode, POOL_PORTS, SynProxy};

use crate::{mistakes, read};

const POOL: &str = "[[address_pool]]\nname = \"snat\"\naddresses = [\"10.9.0.1\", \"10.9.0.8-10.9.0.9\", \"fd09::/127\"]\n";

fn service(more: &str) -> String {
    format!(
        "[[service]]\nvip = \"10.0.0.1:80/tcp\"\nmode = \"full-nat\"\n{more}\nhealth = {{ type = \"none\" }}\nbackend = [{{ address = \"10.1.0.2:80\" }}]\n"
    )
}

#[test]
fn a_pool_and_the_service_that_has_it_are_read() {
    let ports = "ports = \"1000-1999\"\n";
    let text = format!(
        "{POOL}{ports}{}",
        service(
            "address_pool = \"snat\"\nclient_address = \"tcp-option\"\nsyn_proxy = \"above=1000\""
        )
    );
    let config = read(&text);
    let [pool] = &config.address_pools[..] else {
        panic!("{:#?}", config.address_pools);
    };
    let addresses: Vec<String> = pool.addresses().iter().map(ToString::to_string).collect();
    assert_eq!(
        addresses,
        ["10.9.0.1", "10.9.0.8", "10.9.0.9", "fd09::", "fd09::1"]
    );
    assert_eq!((pool.name(), pool.ports()), ("snat", (1_000, 1_999)));
    let service = &config.services[0];
    assert_eq!(service.mode, Mode::FullNat);
    assert_eq!(service.address_pool.as_deref(), Some("snat"));
    assert_eq!(service.client_address, ClientAddress::TcpOption);
    assert_eq!(service.syn_proxy, SynProxy::Above(1_000));
    assert_eq!(read(POOL).address_pools[0].ports(), POOL_PORTS);
}

#[test]
fn what_is_wrong_with_a_pool_is_said_where_it_stands() {
    let has = service("address_pool = \"snat\"");
    for (text, key, problem) in [
        (
            service(""),
            "service[0].address_pool",
            "mode \"full-nat\" takes addresses",
        ),
        (
            has.clone(),
            "service[0].address_pool",
            "write an [[address_pool]] of that name",
        ),
        (
            "[[address_pool]]\nname = \"a b\"\naddresses = [\"10.9.0.1\"]\n".to_owned(),
            "address_pool[0]",
            "is not a pool's name",
        ),
        (
            "[[address_pool]]\nname = \"a\"\n".to_owned(),
            "address_pool[0].addresses",
            "missing",
        ),
        (
            "[[address_pool]]\nname = \"a\"\naddresses = []\n".to_owned(),
            "address_pool[0]",
            "has no addresses",
        ),
        (
            "[[address_pool]]\nname = \"a\"\naddresses = [\"10.9\"]\n".to_owned(),
            "address_pool[0].addresses",
            "is not an address",
        ),
        (
            format!("{POOL}ports = \"0-5\"\n"),
            "address_pool[0].ports",
            "is no range of ports",
        ),
        (
            format!("{POOL}{}", POOL.replace("\"snat\"", "\"other\"")),
            "address_pool[1]",
            "is of pool snat already",
        ),
        (
            format!(
                "{}{has}",
                POOL.replace("\"10.9.0.1\", \"10.9.0.8-10.9.0.9\", ", "")
            ),
            "service[0].address_pool",
            "has no address of IPv4",
        ),
        (
            format!("{POOL}{}", has.replace("10.1.0.2", "10.9.0.9")),
            "service[0].address",
            "is of address pool snat",
        ),
        (
            format!("{POOL}{}", has.replace("10.0.0.1", "10.9.0.9")),
            "service[0].vip",
            "is of address pool snat",
        ),
        (
            format!("{POOL}{}", has.replace("10.1.0.2:80", "[fd00::2]:80")),
            "service[0].backend[0].address",
            "of another address family",
        ),
        (
            format!("{POOL}{}", has.replace("full-nat", "nat")),
            "service[0].address_pool",
            "mode \"nat\" keeps the client's address",
        ),
        (
            format!(
                "{POOL}{}",
                service("address_pool = \"snat\"\nmoving_time = \"0s\"")
            ),
            "service[0].moving_time",
            "needs one of each",
        ),
        (
            format!(
                "{POOL}{}",
                service("address_pool = \"snat\"\nclient_address = \"tcp-option\"")
                    .replace("/tcp", "/udp")
            ),
            "service[0].client_address",
            "is one of TCP",
        ),
        (
            service("client_address = \"tcp-option\"").replace("full-nat", "l2"),
            "service[0].client_address",
            "see the client's address anyway",
        ),
        (
            service("syn_proxy = \"always\"").replace("full-nat", "l2"),
            "service[0].syn_proxy",
            "only mode \"full-nat\" sees what backends answer",
        ),
        (
            format!(
                "{POOL}{}",
                service("address_pool = \"snat\"\nsyn_proxy = \"always\"").replace("/tcp", "/udp")
            ),
            "service[0].syn_proxy",
            "only TCP has SYNs",
        ),
        (
            format!(
                "{POOL}{}",
                service("address_pool = \"snat\"\nsyn_proxy = \"sometimes\"")
            ),
            "service[0].syn_proxy",
            "write \"off\", \"always\"",
        ),
    ] {
        let found = mistakes(&text);
        let matches = |error: &lb_userspace::config::ConfigError| {
            error.key == key && error.problem.contains(problem)
        };
        assert!(found.iter().any(matches), "{text}\n{found:#?}");
    }
}
