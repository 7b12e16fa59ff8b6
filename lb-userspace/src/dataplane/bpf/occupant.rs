//! Whose program an interface has that refuses ours, and how it is taken away: for the refusal, so that nobody has to find out.
//! Changes nothing.

use aya::programs::{ProgramInfo, loaded_links, loaded_programs};
use futures_util::TryStreamExt as _;
use netlink_packet_route::link::{LinkAttribute, LinkXdp};

/// Which program it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Occupant {
    id: u32,
    /// Its name in the kernel, of 15 bytes at most.
    name: Option<String>,
    /// Whether the network stack runs it.
    generic: bool,
    /// The BPF link that holds it.
    link: Option<u32>,
}

/// What an interface has, in words; what can be said without knowing it, if that cannot be found out.
pub fn describe(interface: &str) -> String {
    match find(interface) {
        Some(occupant) => occupant.in_words(interface),
        None => format!(
            "another XDP program is attached there: `ip link show dev {interface}` and `bpftool net` say which; take it away first"
        ),
    }
}

/// The program of an interface, if it has one.
pub fn program(interface: &str) -> Option<ProgramInfo> {
    let (id, _) = ask(interface)?;
    by_id(id)
}

fn by_id(id: u32) -> Option<ProgramInfo> {
    let mut programs = loaded_programs().filter_map(Result::ok);
    programs.find(|program| program.id() == id)
}

/// As [`attached`].
fn ask(interface: &str) -> Option<(u32, bool)> {
    // A thread of its own, since a runtime may be driving this one.
    let asked = std::thread::scope(|scope| scope.spawn(|| attached(interface)).join());
    asked.ok()?
}

/// The one on an interface of the namespace of the calling thread.
fn find(interface: &str) -> Option<Occupant> {
    let (id, generic) = ask(interface)?;
    let program = by_id(id);
    let name = program.and_then(|program| program.name_as_str().map(str::to_owned));
    let mut links = loaded_links().filter_map(Result::ok);
    let link = links.find(|link| link.program_id() == id);
    Some(Occupant {
        id,
        name: name.filter(|name| !name.is_empty()),
        generic,
        link: link.map(|link| link.id()),
    })
}

/// The id of the program, and whether the network stack runs it, as the kernel tells of the interface.
fn attached(interface: &str) -> Option<(u32, bool)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.ok()?.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().ok()?;
        tokio::spawn(connection);
        let mut links = handle
            .link()
            .get()
            .match_name(interface.to_owned())
            .execute();
        let link = links.try_next().await.ok()??;
        let xdp = link
            .attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Xdp(xdp) => Some(xdp),
                _ => None,
            })?;
        let by = |of: fn(&LinkXdp) -> Option<u32>| xdp.iter().find_map(of);
        let generic = by(|xdp| match xdp {
            LinkXdp::SkbProgId(id) => Some(*id),
            _ => None,
        });
        let any = by(|xdp| match xdp {
            LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::HwProgId(id) => Some(*id),
            _ => None,
        });
        // Where it is the only one, both say so.
        let id = any.or(generic)?;
        Some((id, generic == Some(id)))
    })
}

impl Occupant {
    fn in_words(&self, interface: &str) -> String {
        let Self {
            id,
            name,
            generic,
            link,
        } = self;
        let name = name.as_deref();
        let called = name.map_or_else(String::new, |name| format!(" `{name}`"));
        let mode = if *generic { "generic" } else { "native" };
        let held = match link {
            Some(link) => format!("held by BPF link {link}"),
            None => "held by no BPF link".to_owned(),
        };
        let remedy = match (name, link) {
            (Some("lb"), _) => "it is a load balancer's: `lbd detach --name NAME` of the instance that it is takes it away, and all that that one balances with it".to_owned(),
            (Some("decap"), _) => "it is a decapsulator's: `lbd decap --detach` takes it away".to_owned(),
            (Some("xdp_dispatcher"), _) => format!(
                "it is libxdp's, and stands for several: `xdp-loader status {interface}` lists them, `xdp-loader unload {interface} --all` takes them away; ours is not made to be one of them"
            ),
            (_, Some(link)) => format!(
                "stop what attached it, or take it away by `bpftool link detach id {link}`"
            ),
            (_, None) => {
                let kind = if *generic { "xdpgeneric" } else { "xdp" };
                format!("take it away by `ip link set dev {interface} {kind} off`")
            }
        };
        format!(
            "another XDP program is attached there, and an interface has one: program {id}{called}, in {mode} mode, {held}; {remedy}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(name: Option<&str>, generic: bool, link: Option<u32>) -> String {
        let occupant = Occupant {
            id: 42,
            name: name.map(str::to_owned),
            generic,
            link,
        };
        occupant.in_words("eth7")
    }

    #[test]
    fn who_it_is_is_said_with_what_takes_it_away() {
        for (name, generic, link, parts) in [
            (
                Some("lb"),
                false,
                Some(7),
                [
                    "program 42 `lb`, in native mode, held by BPF link 7",
                    "lbd detach --name NAME",
                ],
            ),
            (
                Some("decap"),
                true,
                Some(7),
                ["`decap`, in generic mode", "lbd decap --detach"],
            ),
            (
                Some("xdp_dispatcher"),
                false,
                Some(7),
                ["`xdp_dispatcher`", "xdp-loader unload eth7 --all"],
            ),
            (
                Some("firewall"),
                false,
                Some(7),
                ["`firewall`", "bpftool link detach id 7"],
            ),
            (
                None,
                false,
                None,
                [
                    "program 42, in native mode, held by no BPF link",
                    "ip link set dev eth7 xdp off",
                ],
            ),
            (
                Some("old"),
                true,
                None,
                [
                    "`old`, in generic mode",
                    "ip link set dev eth7 xdpgeneric off",
                ],
            ),
        ] {
            let said = words(name, generic, link);
            for part in parts {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
    }
}
