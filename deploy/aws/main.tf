# One region's part of a deployment: network, notice queue and its rule. Run it once for each region; the roles are for
# all of them, and are made with the first (var.roles). The daemon makes its launch templates itself, since their content follows its configuration.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = { source = "hashicorp/aws", version = ">= 5.0" }
  }
}

data "aws_caller_identity" "here" {}
data "aws_partition" "here" {}
data "aws_region" "here" {}

locals {
  name = "autoscaler-${var.deployment}"
  tags = { autoscaler-deployment = var.deployment }
  policy_values = {
    partition  = data.aws_partition.here.partition
    account    = data.aws_caller_identity.here.account_id
    deployment = var.deployment
  }
}

# ------------------------------------------------------------------------------------------------ network

resource "aws_vpc" "runners" {
  cidr_block           = var.cidr
  enable_dns_hostnames = true
  tags                 = merge(local.tags, { Name = local.name })
}

resource "aws_internet_gateway" "runners" {
  vpc_id = aws_vpc.runners.id
  tags   = merge(local.tags, { Name = local.name })
}

resource "aws_route_table" "runners" {
  vpc_id = aws_vpc.runners.id
  route {
    cidr_block = "0.0.0.0/0"
    gateway_id = aws_internet_gateway.runners.id
  }
  tags = merge(local.tags, { Name = local.name })
}

# Exactly one subnet per zone: a fleet request cannot use two of the same zone.
resource "aws_subnet" "runners" {
  for_each                = { for index, zone in var.availability_zones : zone => index }
  vpc_id                  = aws_vpc.runners.id
  availability_zone       = each.key
  cidr_block              = cidrsubnet(var.cidr, 4, each.value)
  map_public_ip_on_launch = true
  tags                    = merge(local.tags, { Name = "${local.name}-${each.key}" })
}

resource "aws_route_table_association" "runners" {
  for_each       = aws_subnet.runners
  subnet_id      = each.value.id
  route_table_id = aws_route_table.runners.id
}

# Nobody calls a runner: it calls the daemon, the forge and whatever jobs need.
resource "aws_security_group" "runners" {
  name        = local.name
  description = "CI runners: outbound only"
  vpc_id      = aws_vpc.runners.id
  egress {
    from_port   = 0
    to_port     = 0
    protocol    = "-1"
    cidr_blocks = ["0.0.0.0/0"]
  }
  tags = local.tags
}

# ------------------------------------------------------------------------------------------------ notices

# A warning older than five minutes is worth nothing, and a restart must not replay any.
resource "aws_sqs_queue" "notices" {
  name                       = local.name
  message_retention_seconds  = 300
  visibility_timeout_seconds = 20
  receive_wait_time_seconds  = 20
  sqs_managed_sse_enabled    = true
  tags                       = local.tags
}

# Without the condition, a rule in anybody's account could send here, and say what it likes of our machines.
resource "aws_sqs_queue_policy" "notices" {
  queue_url = aws_sqs_queue.notices.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "EventsOfOurRulesArrive"
        Effect    = "Allow"
        Principal = { Service = "events.amazonaws.com" }
        Action    = "sqs:SendMessage"
        Resource  = aws_sqs_queue.notices.arn
        Condition = {
          ArnEquals = {
            "aws:SourceArn" = [aws_cloudwatch_event_rule.machines.arn, aws_cloudwatch_event_rule.health.arn]
          }
        }
      },
      {
        Sid       = "NothingWithoutTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "sqs:*"
        Resource  = aws_sqs_queue.notices.arn
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
    ]
  })
}

# Events carry no tags, so every machine of the account in this region is heard of; the daemon drops the others.
resource "aws_cloudwatch_event_rule" "machines" {
  name        = "${local.name}-machines"
  description = "Spot interruptions, rebalance recommendations and ends of machines"
  event_pattern = jsonencode({
    source = ["aws.ec2"]
    "detail-type" = [
      "EC2 Spot Instance Interruption Warning",
      "EC2 Instance Rebalance Recommendation",
      "EC2 Instance State-change Notification",
    ]
  })
  tags = local.tags
}

resource "aws_cloudwatch_event_rule" "health" {
  name        = "${local.name}-health"
  description = "Scheduled changes of hosts"
  event_pattern = jsonencode({
    source        = ["aws.health"]
    "detail-type" = ["AWS Health Event"]
    detail        = { service = ["EC2"], eventTypeCategory = ["scheduledChange"] }
  })
  tags = local.tags
}

resource "aws_cloudwatch_event_target" "notices" {
  for_each = { machines = aws_cloudwatch_event_rule.machines.name, health = aws_cloudwatch_event_rule.health.name }
  rule     = each.value
  arn      = aws_sqs_queue.notices.arn
}

# ------------------------------------------------------------------------------------------------ roles

resource "aws_iam_role" "controller" {
  count = var.roles ? 1 : 0
  name  = local.name
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = var.controller_principals }]
  })
  tags = local.tags
}

resource "aws_iam_role_policy" "controller" {
  count  = var.roles ? 1 : 0
  name   = "autoscaler"
  role   = aws_iam_role.controller[0].id
  policy = templatefile("${path.module}/controller-policy.json", local.policy_values)
}

resource "aws_iam_instance_profile" "controller" {
  count = var.roles ? 1 : 0
  name  = local.name
  role  = aws_iam_role.controller[0].name
  tags  = local.tags
}

resource "aws_iam_role" "runner" {
  count = var.roles && var.instance_profile ? 1 : 0
  name  = "${local.name}-runner"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ec2.amazonaws.com" } }]
  })
  tags = local.tags
}

resource "aws_iam_instance_profile" "runner" {
  count = var.roles && var.instance_profile ? 1 : 0
  name  = "${local.name}-runner"
  role  = aws_iam_role.runner[0].name
  tags  = local.tags
}

resource "aws_iam_role_policy" "instance_profile" {
  count  = var.roles && var.instance_profile ? 1 : 0
  name   = "instance-profile"
  role   = aws_iam_role.controller[0].id
  policy = templatefile("${path.module}/instance-profile-policy.json", local.policy_values)
}

resource "aws_iam_role" "fis" {
  count = var.roles && var.game_days ? 1 : 0
  name  = "${local.name}-fis"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "fis.amazonaws.com" }
      Condition = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.here.account_id } }
    }]
  })
  tags = local.tags
}

resource "aws_iam_role_policy" "fis" {
  count = var.roles && var.game_days ? 1 : 0
  name  = "interrupt"
  role  = aws_iam_role.fis[0].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect    = "Allow"
        Action    = "ec2:SendSpotInstanceInterruptions"
        Resource  = "arn:${data.aws_partition.here.partition}:ec2:*:${data.aws_caller_identity.here.account_id}:instance/*"
        Condition = { StringEquals = { "aws:ResourceTag/autoscaler-deployment" = var.deployment } }
      },
      { Effect = "Allow", Action = "ec2:DescribeInstances", Resource = "*" },
    ]
  })
}

resource "aws_iam_role_policy" "game_days" {
  count  = var.roles && var.game_days ? 1 : 0
  name   = "game-days"
  role   = aws_iam_role.controller[0].id
  policy = templatefile("${path.module}/game-day-policy.json", local.policy_values)
}

# ------------------------------------------------------------------------------------------------ outputs

output "configuration" {
  description = "What the daemon's configuration says of this region."
  value = {
    account = data.aws_caller_identity.here.account_id
    regions = [data.aws_region.here.name]
    networks = { (data.aws_region.here.name) = {
      subnets         = [for subnet in aws_subnet.runners : subnet.id]
      security_groups = [aws_security_group.runners.id]
    } }
    notices          = { (data.aws_region.here.name) = aws_sqs_queue.notices.url }
    instance_profile = var.instance_profile ? "${local.name}-runner" : ""
    fis_role         = var.game_days ? "arn:${data.aws_partition.here.partition}:iam::${data.aws_caller_identity.here.account_id}:role/${local.name}-fis" : ""
  }
}
