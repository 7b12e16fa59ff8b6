//! The packet path: logic shared by the XDP program and the host.
//!
//! | module | owns |
//! |---|---|
//! | [`pipeline`] | the order of the stages |
//! | [`flow`] | bytes to a flow |
//! | [`martian`] | sources that no host has |
//! | [`admit`] | who may send, and how many flows may begin |
//! | [`rate`] | token buckets |
//! | [`steer`] | flow to backend, by the ring alone |
//! | [`track`] | flow to backend, where the ring moved |
//! | [`session`] | flow to backend and back, in mode `full-nat` |
//! | [`full_nat`] | that mode |
//! | [`syn_proxy`] | handshakes that are answered for its backends |
//! | [`client_address`] | how its backends are told who the client is |
//! | [`schedule`] | which backend a new flow gets |
//! | [`quic`] | connection ids |
//! | [`persist`] | which one its client has |
//! | [`second_hop`] | who else may have a flow, as backends are told |
//! | [`hand_on`] | what backends make of that |
//! | [`egress`] | by which way it leaves |
//! | [`forward`] | what the packet becomes |
//! | [`mtu`] | how long it may be |
//! | [`mss`] | how long a segment may be |
//! | [`segment`] | TCP segments that are made here |
//! | [`fragment`] | datagrams in fragments |
//! | [`icmp`] | messages about flows |
//! | [`refuse`] | what nobody takes |
//! | [`neighbour`] | who has a VIP on its links |
//! | [`vlan`] | VLAN tags, and devices over others |
//! | [`passive`] | what packets show of backends |
//! | [`budget`] | how many answers there are |
//! | [`verdict`] | what becomes of it, and why |
//! | [`tables`] | formats of the maps |
//! | [`maglev`] | rings |
//! | `memory` | the maps on the host |
//!
//! Everything here is pure: packets through [`packet::Packet`], maps through [`tables::Tables`].
//! No unsafe code, no allocation, no panic that can be reached: the verifier rejects a program
//! that has one.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod admit;
pub mod budget;
pub mod checksum;
pub mod client_address;
pub mod decapsulate;
pub mod egress;
pub mod flow;
pub mod forward;
pub mod fragment;
pub mod full_nat;
pub mod hand_on;
pub mod hash;
pub mod icmp;
pub mod maglev;
pub mod martian;
#[cfg(feature = "std")]
pub mod memory;
pub mod mss;
pub mod mtu;
pub mod neighbour;
pub mod packet;
pub mod passive;
pub mod persist;
pub mod pipeline;
pub mod quic;
pub mod rate;
pub mod refuse;
pub mod schedule;
pub mod second_hop;
pub mod segment;
pub mod session;
pub mod steer;
pub mod syn_proxy;
pub mod tables;
pub mod track;
pub mod verdict;
pub mod vlan;
pub mod wire;
