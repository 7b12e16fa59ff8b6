//! The packet path, shared by the XDP program and the host.
#![no_std]
#![forbid(unsafe_code)]

pub mod maglev;
pub mod tables;
