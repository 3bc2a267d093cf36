//! The endpoint: where messages are encrypted and read. A person's device and
//! an organisation's agent are the same here; they differ in their certificate
//! and in whose key vouches for their credential.
//!
//! Layers, from the inside out: [`store`] (one thread, one transaction for all),
//! [`mls`] and [`thread`] (groups), [`outbox`], [`inbox`] and [`event`] (queues);
//! [`content`] and [`attachment`] say what a letter is made of. None of these
//! knows a network: that is [`endpoint`], on [`node_client`].

pub mod agent;
pub mod alarm;
pub mod attachment;
pub mod authority;
pub mod broadcast;
pub mod content;
pub mod credential;
pub mod endpoint;
pub mod error;
pub mod event;
pub mod identity;
pub mod inbox;
pub mod link;
pub mod mls;
pub mod node_client;
pub mod outbox;
pub mod peer;
pub mod request;
pub mod store;
pub mod thread;

mod content_view;
mod directory_view;
#[cfg(test)]
mod harness;
mod home;
mod keepsake;
mod own_record;
mod queues;
mod resolve;
mod restored;
mod succession;
