//! Commands to try in another terminal, as they can be pasted. Pure.

use std::path::Path;

use super::Offer;
use crate::topology::{backend_name, stable_name};

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// What it does, in a word.
    pub what: &'static str,
    /// The command.
    pub command: String,
}

/// What to try on the playground called `name`, whose first service is `offer`, with the `lbctl` at
/// `lbctl`, from the directory `from`.
pub fn hints(name: &str, offer: &Offer, lbctl: &Path, from: &Path) -> Vec<Hint> {
    let in_sight = lbctl.strip_prefix(from).unwrap_or(lbctl).display();
    let lbctl = |arguments: String| format!("{in_sight} --name {name} {arguments}");
    let namespace = |role: &str| stable_name(name, role);
    let kill = |role: &str| format!("kill -9 $(ip netns pids {})", namespace(role));
    let service = format!("{}/tcp", offer.vip);
    let (first, last) = (offer.pool[0], offer.pool[offer.pool.len() - 1]);
    let curl = format!(
        "ip netns exec {} curl http://{}/",
        namespace("client"),
        offer.vip.ip()
    );
    [
        ("ask", curl),
        ("list", lbctl("backend list".to_owned())),
        ("drain", lbctl(format!("backend drain {service} {first}"))),
        ("weigh", lbctl(format!("backend weight {service} {last} 3"))),
        ("kill", kill(&backend_name(2))),
        ("kill lbd", kill("balancer")),
    ]
    .map(|(what, command)| Hint { what, command })
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::playground::offers;

    fn commands(lbctl: &str, from: &str) -> Vec<String> {
        let hints = hints("lb", &offers()[0], Path::new(lbctl), Path::new(from));
        hints.into_iter().map(|hint| hint.command).collect()
    }

    #[test]
    fn lbctl_is_named_as_seen_from_where_the_user_is() {
        let inside = commands("/home/me/lb/target/release/lbctl", "/home/me/lb");
        assert_eq!(inside[1], "target/release/lbctl --name lb backend list");
        let outside = commands("/home/me/lb/target/release/lbctl", "/home/you");
        assert_eq!(
            outside[1],
            "/home/me/lb/target/release/lbctl --name lb backend list"
        );
    }

    #[test]
    fn commands_name_what_the_playground_made() {
        let all = commands("lbctl", "/").join("\n");
        for part in [
            "lb-client",
            "lb-backend2",
            "lb-balancer",
            "10.0.0.1:80/tcp 10.2.0.11:80",
        ] {
            assert!(all.contains(part), "{part} is not in\n{all}");
        }
    }
}
