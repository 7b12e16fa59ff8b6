//! The playground: a client, the balancer and three nginx servers in network namespaces, to try the
//! product on. `cargo xtask run` starts it; everything goes when it ends.
//!
//! Data, drawing and doing are apart:
//!
//! | module | owns |
//! |---|---|
//! | [`claim`] | the playground's name: one at a time, and what a killed one left |
//! | [`stage`] | doing: namespaces, servers, the agent; kills, revives, drains |
//! | [`load`] | a small load from the client, and what became of each request |
//! | [`board`] | what is known: news in, [`board::View`] out; pure |
//! | [`changes`] | what is new between two answers of the agent; pure |
//! | [`hints`] | commands to try, as they can be pasted; pure |
//! | [`keys`] | keys to actions; pure |
//! | [`screen`] | a [`board::View`] in a terminal |
//! | [`lines`] | a [`board::View`] as lines, where there is no terminal |
//! | [`picture`] | the screen as an SVG file |
//! | [`run`] | the loop that joins them |

use std::net::{IpAddr, SocketAddr};

use crate::{
    backend::PORT,
    config::{Health, Service},
    topology::{backend_v4, backend_v6, vip_v4, vip_v6},
};

pub mod board;
pub mod changes;
pub mod claim;
pub mod hints;
pub mod keys;
pub mod lines;
pub mod load;
pub mod picture;
mod run;
pub mod screen;
pub mod stage;

pub use run::{Options, run};

/// Servers behind every service.
pub const BACKENDS: u8 = 3;

/// A service of the playground: one of each mode and family.
#[derive(Debug, Clone)]
pub struct Offer {
    /// What it shows, as `ipip 4in6`.
    pub label: &'static str,
    /// The VIP that clients ask.
    pub vip: SocketAddr,
    /// Its forwarding mode.
    pub mode: &'static str,
    /// The servers, in their order.
    pub pool: Vec<SocketAddr>,
}

impl Offer {
    /// The same for the agent's configuration file.
    pub fn service(&self) -> Service {
        let id = format!("{}/tcp", self.vip);
        Service::new(id, self.mode, Health::HTTP, self.pool.iter().copied())
    }
}

/// Every service of the playground.
pub fn offers() -> Vec<Offer> {
    let pool = |v6: bool| {
        (1..=BACKENDS).map(move |n| {
            let address: IpAddr = if v6 {
                backend_v6(n).into()
            } else {
                backend_v4(n).into()
            };
            SocketAddr::new(address, PORT)
        })
    };
    let offer = |label, mode, vip: IpAddr, v6| Offer {
        label,
        vip: SocketAddr::new(vip, PORT),
        mode,
        pool: pool(v6).collect(),
    };
    vec![
        offer("nat v4", "nat", vip_v4(1).into(), false),
        offer("nat v6", "nat", vip_v6(1).into(), true),
        offer("ipip 4in4", "ipip", vip_v4(2).into(), false),
        offer("ipip 6in6", "ipip", vip_v6(2).into(), true),
        offer("ipip 4in6", "ipip", vip_v4(3).into(), true),
        offer("ipip 6in4", "ipip", vip_v6(3).into(), false),
        offer("gue 4in4", "gue", vip_v4(4).into(), false),
        offer("gue 6in6", "gue", vip_v6(4).into(), true),
        offer("l2 v4", "l2", vip_v4(5).into(), false),
        offer("l2 v6", "l2", vip_v6(5).into(), true),
    ]
}
