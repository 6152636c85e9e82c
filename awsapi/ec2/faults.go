package ec2

import "rehost/awsapi"

// The errors of the operations, which EC2's model does not have.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
var (
	CannotDelete                       = fault("CannotDelete")
	DependencyViolation                = fault("DependencyViolation")
	DryRunOperation                    = &awsapi.Fault{Code: "DryRunOperation", Status: 412}
	InvalidGroupDuplicate              = fault("InvalidGroup.Duplicate")
	InvalidGroupNotFound               = fault("InvalidGroup.NotFound")
	InvalidGroupIDMalformed            = fault("InvalidGroupId.Malformed")
	InvalidID                          = fault("InvalidID")
	InvalidNextToken                   = fault("InvalidNextToken")
	InvalidParameterCombination        = fault("InvalidParameterCombination")
	InvalidParameterValue              = fault("InvalidParameterValue")
	InvalidPermissionDuplicate         = fault("InvalidPermission.Duplicate")
	InvalidPermissionNotFound          = fault("InvalidPermission.NotFound")
	InvalidPrefixListIDNotFound        = fault("InvalidPrefixListID.NotFound")
	InvalidSecurityGroupRuleIDNotFound = fault("InvalidSecurityGroupRuleId.NotFound")
	InvalidVpcIDNotFound               = fault("InvalidVpcID.NotFound")
	MissingParameter                   = fault("MissingParameter")
	RulesPerSecurityGroupLimitExceeded = fault("RulesPerSecurityGroupLimitExceeded")
	SecurityGroupLimitExceeded         = fault("SecurityGroupLimitExceeded")
	TagLimitExceeded                   = fault("TagLimitExceeded")
)

func fault(code string) *awsapi.Fault { return &awsapi.Fault{Code: code, Status: 400} }
