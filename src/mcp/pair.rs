//! An MCP connection inside this process: two bounded channels of typed messages, without serialisation.

use rmcp::RoleClient;
use rmcp::RoleServer;
use rmcp::service::{RxJsonRpcMessage, ServiceRole, TxJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::sync::mpsc;

/// Most messages that wait in one direction before the sender waits.
const LINE_MESSAGES_MAX: usize = 64;

/// One end of the connection.
pub struct PairEnd<R: ServiceRole> {
    to: Option<mpsc::Sender<TxJsonRpcMessage<R>>>,
    from: mpsc::Receiver<RxJsonRpcMessage<R>>,
}

/// The other end has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hangup;

impl std::fmt::Display for Hangup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the peer closed the connection")
    }
}

impl std::error::Error for Hangup {}

/// Both ends of a connection.
pub fn pair() -> (PairEnd<RoleClient>, PairEnd<RoleServer>) {
    let (ask, asked) = mpsc::channel(LINE_MESSAGES_MAX);
    let (tell, told) = mpsc::channel(LINE_MESSAGES_MAX);
    (PairEnd { to: Some(ask), from: told }, PairEnd { to: Some(tell), from: asked })
}

impl<R: ServiceRole> Transport<R> for PairEnd<R> {
    type Error = Hangup;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<R>,
    ) -> impl Future<Output = Result<(), Hangup>> + Send + 'static {
        let to = self.to.clone();
        async move { to.ok_or(Hangup)?.send(item).await.map_err(|_| Hangup) }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<R>> {
        self.from.recv().await
    }

    async fn close(&mut self) -> Result<(), Hangup> {
        self.to = None;
        self.from.close();
        Ok(())
    }
}
