//! Tables as one nftables transaction.

use std::net::Ipv4Addr;

use netlink_bindings::nftables::{
    self, BitwiseOps, CmpOps, CtDirection, CtKeys, MetaKeys, Nfgenmsg, PayloadBase, PushExprListAttrs, PushRuleAttrs,
    Registers, VerdictCode,
};
use netlink_bindings::traits::Pusher;
use netlink_bindings::utils::{RequestBuf, finalize_nested_header, push_header, push_nested_header};
use netlink_socket2::NetlinkSocket;

use super::{Action, Chain, ChainType, Family, Hook, MARK_MASK, Match, Prefix, Table};
use crate::links::LinkError;

/// More messages than any pod's rules need.
const SEQUENCE_NUMBERS: u32 = 256;
/// `lo` is the first interface of every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// `NFNL_SUBSYS_NFTABLES`, the addressee of a batch.
const NFTABLES: u16 = 10;

// Attribute numbers that the bindings don't have (linux/netfilter/nf_tables.h).
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_REDIR_REG_PROTO_MIN: u16 = 1;

const LOAD_NFTABLES: &str = "it lacks a part of nftables: load it with `sudo modprobe -a nf_tables nft_chain_nat nft_ct \
                             nft_redir`, or use a kernel built with `CONFIG_NF_TABLES`, `CONFIG_NFT_NAT`, \
                             `CONFIG_NFT_CT` and `CONFIG_NFT_REDIR`";

const IPV4_SOURCE: u32 = 12;
const IPV4_DESTINATION: u32 = 16;
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;

const REGISTER: u32 = Registers::Reg1 as u32;

type Expressions<'a> = PushExprListAttrs<PushRuleAttrs<RequestBuf<'a>>>;

/// Puts the tables into the calling thread's network namespace: all of them, or none.
pub(crate) fn apply(tables: &[Table]) -> Result<(), LinkError> {
    let mut socket = NetlinkSocket::new();
    let mut batch = nftables::Chained::new(socket.reserve_seq(SEQUENCE_NUMBERS));
    let mut envelope = Nfgenmsg::new();
    envelope.set_res_id(NFTABLES);
    batch.request().op_batch_begin_do(&envelope);
    for table in tables {
        push_table(&mut batch, table);
    }
    batch.request().op_batch_end_do(&envelope);
    let batch = batch.finalize();
    let what = || "redirect a pod's traffic (nftables)".to_owned();
    socket.request_chained(&batch).map_err(|error| LinkError::io(what(), error))?.recv_all().map_err(|error| {
        [libc::ENOENT, libc::EOPNOTSUPP, libc::EPROTONOSUPPORT]
            .into_iter()
            .fold(LinkError::reply(what(), error), |error, number| error.with_advice(number, LOAD_NFTABLES))
    })
}

fn header(family: Family) -> Nfgenmsg {
    let number = match family {
        Family::Ip => libc::NFPROTO_IPV4,
        Family::Ip6 => libc::NFPROTO_IPV6,
    };
    Nfgenmsg { nfgen_family: u8::try_from(number).unwrap_or_default(), ..Default::default() }
}

fn push_table(batch: &mut nftables::Chained<'static>, table: &Table) {
    let header = header(table.family);
    batch.request().set_create().op_newtable_do(&header).encode().push_name_bytes(table.name.as_bytes());
    for chain in &table.chains {
        push_chain(batch, &header, table, chain);
        for (matches, action) in &chain.rules {
            let mut expressions = batch
                .request()
                .set_create()
                .set_append()
                .op_newrule_do(&header)
                .into_encoder()
                .push_table_bytes(table.name.as_bytes())
                .push_chain_bytes(chain.name.as_bytes())
                .nested_expressions();
            for each in matches {
                expressions = push_match(expressions, *each);
            }
            push_action(expressions, *action).end_nested();
        }
    }
}

fn push_chain(batch: &mut nftables::Chained<'static>, header: &Nfgenmsg, table: &Table, chain: &Chain) {
    let ty = match chain.ty {
        ChainType::Nat => c"nat",
        ChainType::Filter => c"filter",
        ChainType::Route => c"route",
    };
    let hook = match chain.hook {
        Hook::PreRouting => libc::NF_INET_PRE_ROUTING,
        Hook::Input => libc::NF_INET_LOCAL_IN,
        Hook::Output => libc::NF_INET_LOCAL_OUT,
    };
    batch
        .request()
        .set_create()
        .op_newchain_do(header)
        .encode()
        .push_table_bytes(table.name.as_bytes())
        .push_name_bytes(chain.name.as_bytes())
        .push_type(ty)
        .nested_hook()
        .push_num(u32::try_from(hook).unwrap_or_default())
        .push_priority(chain.priority)
        .end_nested();
}

fn push_match(list: Expressions<'_>, each: Match) -> Expressions<'_> {
    let transport = PayloadBase::TransportHeader;
    let network = PayloadBase::NetworkHeader;
    match each {
        Match::Tcp => compare(meta(list, MetaKeys::L4Proto), CmpOps::Eq, &[libc::IPPROTO_TCP as u8]),
        Match::Udp => compare(meta(list, MetaKeys::L4Proto), CmpOps::Eq, &[libc::IPPROTO_UDP as u8]),
        Match::SourceIs(address) => compare(payload(list, network, IPV4_SOURCE, 4), CmpOps::Eq, &address.octets()),
        Match::DestinationIs(address) => {
            compare(payload(list, network, IPV4_DESTINATION, 4), CmpOps::Eq, &address.octets())
        }
        Match::DestinationNotIn(prefix) => {
            let loaded = payload(list, network, IPV4_DESTINATION, 4);
            let masked = if prefix.1 == 32 { loaded } else { bitwise(loaded, mask(prefix).octets(), [0; 4]) };
            compare(masked, CmpOps::Neq, &prefix.0.octets())
        }
        Match::SourcePortIs(port) => compare(payload(list, transport, SOURCE_PORT, 2), CmpOps::Eq, &port.to_be_bytes()),
        Match::DestinationPortIs(port) => {
            compare(payload(list, transport, DESTINATION_PORT, 2), CmpOps::Eq, &port.to_be_bytes())
        }
        Match::DestinationPortNot(port) => {
            compare(payload(list, transport, DESTINATION_PORT, 2), CmpOps::Neq, &port.to_be_bytes())
        }
        Match::MarkIs(mark) => compare_mark(meta(list, MetaKeys::Mark), CmpOps::Eq, mark),
        Match::MarkNot(mark) => compare_mark(meta(list, MetaKeys::Mark), CmpOps::Neq, mark),
        Match::ConnectionMarkIs(mark) => compare_mark(connection(list, CtKeys::Mark), CmpOps::Eq, mark),
        Match::OutLoopback => compare(meta(list, MetaKeys::Oif), CmpOps::Eq, &LOOPBACK_INDEX.to_ne_bytes()),
        Match::OutNotLoopback => compare(meta(list, MetaKeys::Oif), CmpOps::Neq, &LOOPBACK_INDEX.to_ne_bytes()),
        Match::InNotLoopback => compare(meta(list, MetaKeys::Iif), CmpOps::Neq, &LOOPBACK_INDEX.to_ne_bytes()),
    }
}

fn push_action(list: Expressions<'_>, action: Action) -> Expressions<'_> {
    match action {
        Action::Accept => verdict(list, VerdictCode::Accept),
        Action::Drop => verdict(list, VerdictCode::Drop),
        Action::Redirect(port) => redirect(immediate(list, &port.to_be_bytes())),
        Action::SetConnectionMark(mark) => {
            let kept = bitwise(connection(list, CtKeys::Mark), (!MARK_MASK).to_ne_bytes(), mark.to_ne_bytes());
            set_connection(kept, CtKeys::Mark)
        }
        Action::RestoreMark => connection(list, CtKeys::Mark)
            .nested_elem()
            .nested_data_meta()
            .push_key(MetaKeys::Mark as u32)
            .push_sreg(REGISTER)
            .end_nested()
            .end_nested(),
        Action::ConnectionZone(zone) => set_connection(immediate(list, &zone.to_ne_bytes()), CtKeys::Zone),
        Action::OriginalZone(zone) => immediate(list, &zone.to_ne_bytes())
            .nested_elem()
            .nested_data_ct()
            .push_key(CtKeys::Zone as u32)
            .push_direction(CtDirection::Original as u8)
            .push_sreg(REGISTER)
            .end_nested()
            .end_nested(),
    }
}

fn mask(prefix: Prefix) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(prefix.1)).unwrap_or(0))
}

fn meta(list: Expressions<'_>, key: MetaKeys) -> Expressions<'_> {
    list.nested_elem().nested_data_meta().push_key(key as u32).push_dreg(REGISTER).end_nested().end_nested()
}

fn connection(list: Expressions<'_>, key: CtKeys) -> Expressions<'_> {
    list.nested_elem().nested_data_ct().push_key(key as u32).push_dreg(REGISTER).end_nested().end_nested()
}

fn set_connection(list: Expressions<'_>, key: CtKeys) -> Expressions<'_> {
    list.nested_elem().nested_data_ct().push_key(key as u32).push_sreg(REGISTER).end_nested().end_nested()
}

fn payload(list: Expressions<'_>, base: PayloadBase, offset: u32, length: u32) -> Expressions<'_> {
    list.nested_elem()
        .nested_data_payload()
        .push_dreg(REGISTER)
        .push_base(base as u32)
        .push_offset(offset)
        .push_len(length)
        .end_nested()
        .end_nested()
}

fn bitwise(list: Expressions<'_>, mask: [u8; 4], xor: [u8; 4]) -> Expressions<'_> {
    list.nested_elem()
        .nested_data_bitwise()
        .push_sreg(REGISTER)
        .push_dreg(REGISTER)
        .push_len(4)
        .push_op(BitwiseOps::MaskXor as u32)
        .nested_mask()
        .push_value(&mask)
        .end_nested()
        .nested_xor()
        .push_value(&xor)
        .end_nested()
        .end_nested()
        .end_nested()
}

fn compare<'a>(list: Expressions<'a>, operation: CmpOps, value: &[u8]) -> Expressions<'a> {
    list.nested_elem()
        .nested_data_cmp()
        .push_sreg(REGISTER)
        .push_op(operation as u32)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}

fn compare_mark(list: Expressions<'_>, operation: CmpOps, mark: u32) -> Expressions<'_> {
    compare(bitwise(list, MARK_MASK.to_ne_bytes(), [0; 4]), operation, &mark.to_ne_bytes())
}

fn immediate<'a>(list: Expressions<'a>, value: &[u8]) -> Expressions<'a> {
    list.nested_elem()
        .nested_data_immediate()
        .push_dreg(REGISTER)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}

fn verdict(list: Expressions<'_>, code: VerdictCode) -> Expressions<'_> {
    list.nested_elem()
        .nested_data_immediate()
        .push_dreg(Registers::RegVerdict as u32)
        .nested_data()
        .nested_verdict()
        .push_code(code as u32)
        .end_nested()
        .end_nested()
        .end_nested()
        .end_nested()
}

fn redirect(list: Expressions<'_>) -> Expressions<'_> {
    let mut element = list.nested_elem().push_name(c"redir");
    let buffer = element.as_vec_mut();
    let data = push_nested_header(buffer, NFTA_EXPR_DATA);
    push_header(buffer, NFTA_REDIR_REG_PROTO_MIN, 4);
    buffer.extend_from_slice(&REGISTER.to_be_bytes());
    finalize_nested_header(buffer, data);
    element.end_nested()
}
