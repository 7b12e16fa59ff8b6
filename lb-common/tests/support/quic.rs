//! QUIC services: lengths of connection ids, and who has which server id. Concerns the last service
//! added, as in `flows`.

use lb_common::{
    quic::Lengths,
    tables::{Server, ServerKey},
};

use super::{FIRST_MEMBER, Stage};

impl Stage {
    /// The service is QUIC: its ids have a server id and a nonce of so many bytes.
    pub fn quic(self, server_id: u8, nonce: u8) -> Self {
        self.describe(|descriptor| descriptor.quic = Lengths::new(server_id, nonce).0)
    }

    /// The service is not, any more.
    pub fn not_quic(self) -> Self {
        self.describe(|descriptor| descriptor.quic = 0)
    }

    /// A server of its pool has an id under a configuration.
    pub fn identified(mut self, server: u32, config_id: u8, server_id: &[u8]) -> Self {
        let service = self.tables.service_entries.len() as u32 - 1;
        // Beyond the pool, there is nobody.
        let member = self.tables.members.get((FIRST_MEMBER + server) as usize);
        let key = ServerKey::new(service, config_id, server_id);
        let value = Server {
            member: server,
            generation: member.map_or(0, |member| member.generation),
        };
        self.tables.servers.insert(key, value);
        self
    }
}
